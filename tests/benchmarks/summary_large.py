"""What it takes to summarise a model that no machine at hand could hold.

Run `python tests/benchmarks/summary_large.py`; transformers must be installed (nothing is
downloaded: the models are built from their configurations). Each model has a fresh process, which
gives the function that builds it to `ptools.summarize`, with 2048 tokens: seconds of the imports,
seconds of build and summary together, the process's memory (RSS) after the imports and at its
peak, and the MACs beside a closed form.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from harness import import_torchvision, in_fresh_process, show, show_versions

TOKENS = 2048
MODELS = {"llama": "Llama-70B", "mixtral": "Mixtral-8x7B, bf16"}
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def decoder_macs(config: Any, tokens: int, experts: int = 0, used: int = 1) -> int:
    """q and o; k and v; gate, up and down of each expert in use; router; attention; head."""
    width, inner = config.hidden_size, config.intermediate_size
    keys = width * config.num_key_value_heads // config.num_attention_heads
    weights = 2 * width**2 + 2 * width * keys + used * 3 * width * inner + experts * width
    layer = tokens * weights + 2 * tokens**2 * width
    return config.num_hidden_layers * layer + tokens * width * config.vocab_size


def peak_rss_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def factory_and_truth(name: str) -> tuple[Callable[[], Any], int]:
    import torch
    import transformers

    if name == "llama":
        llama, build_llama = transformers.LlamaConfig(**LLAMA_70B), transformers.LlamaForCausalLM
        return lambda: build_llama(llama), decoder_macs(llama, TOKENS)
    mixtral, build_mixtral = transformers.MixtralConfig(), transformers.MixtralForCausalLM
    macs = decoder_macs(
        mixtral, TOKENS, experts=mixtral.num_local_experts, used=mixtral.num_experts_per_tok
    )
    return lambda: build_mixtral(mixtral).to(torch.bfloat16), macs


def measure(name: str) -> dict[str, Any]:
    start = time.perf_counter()
    import torch

    import_torchvision()
    import ptools

    summarize = ptools.summarize
    factory, truth = factory_and_truth(name)
    imported, rss = time.perf_counter(), peak_rss_mb()
    summary = summarize(factory, torch.zeros(1, TOKENS, dtype=torch.int64))
    return {
        "import_seconds": imported - start,
        "summary_seconds": time.perf_counter() - imported,
        "rss_before_mb": rss,
        "rss_peak_mb": peak_rss_mb(),
        "parameters": summary.parameters,
        "macs": summary.macs,
        "truth": truth,
        "rung": summary.rung,
        "not_counted": [entry.operation for entry in summary.not_counted],
    }


def row(name: str) -> list[str]:
    found = in_fresh_process(__file__, name)
    if isinstance(found, str):
        return [MODELS[name], found, *[""] * 7]
    return [
        MODELS[name],
        f"{found['parameters'] / 1e9:.2f}",
        f"{found['import_seconds']:.1f}",
        f"{found['summary_seconds']:.1f}",
        f"{found['rss_before_mb']:.0f}",
        f"{found['rss_peak_mb']:.0f}",
        f"{found['macs'] / 1e12:.3f}",
        f"{found['truth'] / 1e12:.3f}",
        f"{100 * (found['macs'] / found['truth'] - 1):+.4f}%",
        ", ".join([found["rung"], *found["not_counted"]]),
    ]


def main() -> None:
    columns = ["model", "B params", "import s", "build + summary s", "RSS before, MB"]
    columns += ["RSS peak, MB", "TMACs", "closed form", "error", "run on, not counted"]
    show(f"{TOKENS} tokens, batch 1", columns, [row(name) for name in MODELS])
    show_versions("transformers")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()

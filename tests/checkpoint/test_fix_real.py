"""Checkpoints that real programs write: GPU trainings, Lightning, YOLO, Hugging Face, DDP, FSDP."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from ptools.checkpoint import fix_ckpt
from ptools.cli.fix_ckpt import _model

Write = Callable[[str, str], Path]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""


def net_of(text: str = NET) -> type[nn.Module]:
    scope: dict[str, Any] = {"__name__": "gone"}
    exec(text, scope)
    found: type[nn.Module] = scope["Net"]
    return found


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return net_of()()


def save_on(place: str, value: Any, path: str) -> None:
    with mock.patch.object(torch.serialization, "location_tag", lambda _: place):
        torch.save(value, path)


def loaded(path: str | Path) -> Any:
    return torch.load(path, weights_only=True)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def assert_same(found: Any, wanted: Any, versions: bool = True) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert bits(found[name]) == bits(tensor), name
    if versions:  # of modules, which a module's own pickle does not tell
        assert found._metadata == wanted._metadata


def pytorchcv_net() -> nn.Module:
    model: nn.Module = pytest.importorskip("pytorchcv.models.mobilenetv2").mobilenetv2_wd4()
    return model


def timm_net() -> nn.Module:
    model: nn.Module = pytest.importorskip("timm").create_model("efficientnet_lite0")
    return model


def torchvision_net() -> nn.Module:
    model: nn.Module = pytest.importorskip("torchvision.models").densenet121()
    return model


def monai_net() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    model: nn.Module = nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1)
    return model


MODELS = {
    "pytorchcv": pytorchcv_net,
    "timm": timm_net,
    "torchvision": torchvision_net,
    "monai": monai_net,
}
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("library", MODELS)
def test_wrapped_models_of_libraries_come_out_bare(
    folder: Path, library: str, wrapper: str
) -> None:
    model = MODELS[library]()
    save_on("cuda:1", WRAPPERS[wrapper](model).state_dict(), "net.pth")
    fix_ckpt("net.pth")
    assert_same(loaded("net.cpu.pth"), model.state_dict())


def test_lightning_checkpoints_become_the_plain_model(folder: Path, net: nn.Module) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    save_on(
        "cuda:0",
        {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {
                **{f"model.{name}": value for name, value in net.state_dict().items()},
                "loss_fn.weight": torch.ones(3),
            },
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {
                    "best_model_path": Path("runs/best.ckpt"),
                    "best_model_score": torch.tensor(0.5),
                    "current_score": np.float32(0.25),
                }
            },
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"last_epoch": 3, "_last_lr": [np.float64(0.1)]}],
            "hparams_name": "args",
            "hyper_parameters": Namespace(lr=0.1, layers=[1, 2]),
        },
        "last.ckpt",
    )
    report = fix_ckpt("last.ckpt", "plain.pt", model=net, weights_only=True)
    assert report.match is not None and report.match.rule == "model. removed"
    assert "state_dict.loss_fn.weight" in report.left_out
    net.load_state_dict(loaded("plain.pt"))
    fix_ckpt("last.ckpt")
    found = loaded("last.cpu.ckpt")
    assert found["hyper_parameters"] == {"lr": 0.1, "layers": [1, 2]}
    callback = found["callbacks"]["ModelCheckpoint{'monitor': 'loss'}"]
    assert callback["best_model_path"] == "runs/best.ckpt"
    assert callback["current_score"] == 0.25
    assert found["lr_schedulers"] == [{"last_epoch": 3, "_last_lr": [0.1]}]
    optimizer.load_state_dict(found["optimizer_states"][0])


def test_whole_modules_are_read_without_their_class(folder: Path) -> None:
    """As YOLOv5 saves them, with a class that is not there any more."""
    module = mock.MagicMock(spec=[])
    with mock.patch.dict(sys.modules, gone=module):
        module.Net = net_of()
        model, average = module.Net().half(), module.Net().half()
        whole = {"epoch": 3, "best_fitness": np.array([0.5]), "model": model, "ema": average}
        save_on("cuda:0", {**whole, "updates": 9, "optimizer": None}, "yolo.pt")
        save_on("cuda:0", nn.DataParallel(model), "whole.pt")
    with pytest.raises(ModuleNotFoundError):
        torch.load("yolo.pt", weights_only=False, map_location="cpu")
    report = fix_ckpt("yolo.pt")
    found = loaded("yolo.cpu.pt")
    assert report.modules == ("gone.Net at model", "gone.Net at ema")
    assert_same(found["model"], model.state_dict(), versions=False)
    assert_same(found["ema"], average.state_dict(), versions=False)
    assert found["best_fitness"].tolist() == [0.5]
    report = fix_ckpt("yolo.pt", "ema.pt", ema=True)
    assert report.modules == ("gone.Net at ema",)
    assert_same(loaded("ema.pt"), average.state_dict(), versions=False)
    fix_ckpt("whole.pt")
    assert_same(loaded("whole.cpu.pt"), model.state_dict(), versions=False)


def test_torchscript_gives_its_weights(folder: Path, net: nn.Module) -> None:
    torch.jit.trace(net.eval(), torch.ones(1, 3, 8, 8)).save("script.pt")  # type: ignore[no-untyped-call]
    fix_ckpt("script.pt", "plain.pt", model=net)
    net.load_state_dict(loaded("plain.pt"))


def test_a_model_may_be_a_file_a_checkpoint_or_a_module(write: Write, net: nn.Module) -> None:
    write("model.py", NET)
    torch.save({f"model.{name}": value for name, value in net.state_dict().items()}, "x.pt")
    torch.save(net.state_dict(), "like.pt")
    for given in (_model("model.py:Net", []), _model("like.pt", []), net, net.state_dict()):
        report = fix_ckpt("x.pt", "y.pt", model=given, force=True)
        assert report.match is not None and report.match.complete
        net.load_state_dict(loaded("y.pt"))
    wider = _model("model.py:Net", ["width=8"])
    report = fix_ckpt("x.pt", "z.pt", model=wider)
    assert report.match is not None and len(report.match.mismatched) == 7


def test_what_old_files_lack_the_model_itself_fills_in(folder: Path, net: nn.Module) -> None:
    """BatchNorm has counted its batches since torch 0.4.1."""
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    del state["module.features.1.num_batches_tracked"]
    torch.save(state, "old.pth")
    report = fix_ckpt("old.pth", "new.pth", model=net)
    assert report.match is not None and report.match.complete
    net_of()().load_state_dict(loaded("new.pth"))


@pytest.fixture
def gpt(folder: Path, torchvision: Any) -> Any:
    """A small GPT-2, whose head is its embedding."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=50,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
    )
    return transformers.GPT2LMHeadModel(config).eval()


def says_the_same(model: Any, other: Any) -> bool:
    tokens = torch.arange(8)[None]
    return torch.equal(model(tokens).logits, other.eval()(tokens).logits)


@pytest.mark.parametrize("safetensors", [False, True])
def test_shards_are_read_by_from_pretrained(gpt: Any, safetensors: bool) -> None:
    torch.save(nn.DataParallel(gpt).state_dict(), "gpt.pt")
    fix_ckpt("gpt.pt", "shards", shard_size=10_000, safetensors=safetensors)
    assert len(list(Path("shards").iterdir())) > 3
    gpt.config.save_pretrained("shards")
    options = {"local_files_only": True, "output_loading_info": True}
    again, info = type(gpt).from_pretrained("shards", **options)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert says_the_same(gpt, again)


def test_one_safetensors_file_is_read_by_from_pretrained(gpt: Any) -> None:
    torch.save(nn.DataParallel(gpt).state_dict(), "gpt.pt")
    Path("hub").mkdir()
    fix_ckpt("gpt.pt", "hub/model.safetensors")
    gpt.config.save_pretrained("hub")
    assert says_the_same(gpt, type(gpt).from_pretrained("hub", local_files_only=True))


def test_a_hugging_face_folder_is_a_checkpoint_and_a_model(gpt: Any) -> None:
    gpt.save_pretrained("hub", max_shard_size="10KB")
    torch.save(nn.DataParallel(gpt).state_dict(), "gpt.pt")
    model = _model("hub", [])
    report = fix_ckpt("gpt.pt", "plain.pt", model=model)
    assert report.match is not None and report.match.complete
    report = fix_ckpt("hub", "joined.pt", model=model)
    assert report.match is not None and report.match.complete
    for path in ("plain.pt", "joined.pt"):
        found = loaded(path)
        assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()
        again = type(gpt)(gpt.config)
        again.load_state_dict(found)
        assert says_the_same(gpt, again)


WORKER = (
    NET
    + """
import sys
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel as DDP

def work(rank):
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
    torch.manual_seed(0)
    net = Net()
    wrapped = torch.compile(DDP(net), backend="eager")
    optimizer = torch.optim.Adam(wrapped.parameters())
    wrapped._orig_mod(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    if rank == 0:
        torch.save({"model": wrapped.state_dict(), "optimizer": optimizer.state_dict()}, "ddp.pt")
        torch.save(net.state_dict(), "bare.pt")
        torch.save(DDP(net, init_sync=False), "whole.pt")
    sharded = FSDP(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.Adam(sharded.parameters())
    sharded(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state, moments = sharded.state_dict(), FSDP.optim_state_dict(sharded, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id="dcp")
    if rank == 0:
        torch.save({"model": state, "optimizer": moments}, "fsdp.pt")
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
"""
)


def test_what_two_processes_save_is_read(write: Write) -> None:
    write("work.py", WORKER)
    command = [sys.executable, "-W", "ignore", "work.py", str(Path("rendezvous").resolve())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    bare = loaded("bare.pt")
    fix_ckpt("ddp.pt")
    found = loaded("ddp.cpu.pt")
    assert_same(found["model"], bare)
    net = net_of()()
    torch.optim.Adam(net.parameters()).load_state_dict(found["optimizer"])
    fix_ckpt("whole.pt")
    assert_same(loaded("whole.cpu.pt"), bare, versions=False)
    fix_ckpt("fsdp.pt", "full.pt", model=net)
    fix_ckpt("dcp", "dcp.pt", model=net)
    full, joined = loaded("full.pt"), loaded("dcp.pt")
    for name, tensor in loaded("fsdp.pt")["model"].items():
        assert bits(full["model"][name]) == bits(joined["model"][name]) == bits(tensor)
    net.load_state_dict(full["model"])
    assert set(full["optimizer"]["state"]) == {name for name, _ in net.named_parameters()}

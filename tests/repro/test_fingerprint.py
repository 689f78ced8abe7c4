"""A block's fingerprint: recorded, compared, saved and loaded."""

import gc
import gzip
import json
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ptools
from ptools.errors import PtoolsError, UsageError
from ptools.repro.fingerprints.recordfile import whole

Fingerprint = ptools.Fingerprint


def train(steps: int = 8, seed: int = 0, noise: float = 0.0, device: str = "cpu") -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    data = TensorDataset(torch.randn(32, 8), torch.randint(4, (32,)))
    for _ in range(steps // 4):
        for x, y in DataLoader(data, 8, shuffle=True):
            loss = nn.functional.cross_entropy(net(x.to(device)), y.to(device)) * (1 + noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def taken(block: Callable[[], object] = train, exact: bool = True) -> Fingerprint:
    with Fingerprint(exact) as run:
        block()
    return run


@pytest.mark.parametrize("exact", [True, False])
def test_a_block_that_repeats_has_the_same_fingerprint(exact: bool) -> None:
    first = taken(exact=exact)
    gc.collect()
    kept = [torch.empty(1000) for _ in range(50)]  # other memory, other addresses
    second = taken(exact=exact)
    assert kept
    assert first == second
    assert first.digest == second.digest
    assert hash(first) == hash(second)
    assert len(first.digest) == 64
    assert first.compare(second) is None


def test_models_of_equal_size_come_in_the_order_of_their_calls() -> None:
    def several() -> None:
        torch.manual_seed(0)
        models = [nn.BatchNorm1d(4) for _ in range(12)]
        for model in models:
            model(torch.randn(3, 4))

    assert len({taken(several, exact=False).digest for _ in range(4)}) == 1


def test_another_seed_is_a_draw_from_another_state() -> None:
    first, second = taken(), taken(lambda: train(seed=1))
    verdict = first.compare(second)
    assert first != second
    assert verdict is not None
    assert (verdict.kind, verdict.op) == ("random", "aten::uniform_")
    assert verdict.where is not None
    assert "nn.Linear(8, 16)" in verdict.where.source


def test_a_verdict_prints_as_a_person_reads_it() -> None:
    verdict = taken().compare(taken(lambda: train(noise=1e-3)))
    text = str(verdict)
    assert "argument other of aten::mul is 1.0 and 1.001" in text
    assert "* (1 + noise)" in text
    assert "test_fingerprint.py:" in text
    assert "Verdict(" not in text


def test_beats_alone_tell_the_step_and_how_to_find_the_operation() -> None:
    verdict = taken(exact=False).compare(taken(lambda: train(noise=1e-3), exact=False))
    assert verdict is not None
    assert (verdict.kind, verdict.step, verdict.value) == ("state", 0, "the loss")
    assert "exact=True" in verdict.advice


def test_small_errors_are_allowed_for_within_a_tolerance() -> None:
    first, second = taken(), taken(lambda: train(noise=1e-6))
    assert first.compare(second) is not None
    assert first.compare(second, tolerance=1e-3) is None
    verdict = first.compare(second, tolerance=1e-7)
    assert verdict is not None
    assert verdict.kind == "tolerance"
    assert verdict.op == "aten::mul"  # where the error is put in
    assert any("the tolerance is 1e-07" in fact for fact in verdict.facts)


def test_rounding_that_is_all_there_is_of_a_gradient_is_no_error() -> None:
    """The gradient of a bias before a BatchNorm is zero but for rounding."""

    def normed(noise: float) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(4):
            (net(torch.randn(32, 8)).mean() * (1 + noise)).backward()
            optimizer.step()

    assert taken(lambda: normed(0)).compare(taken(lambda: normed(1e-6)), tolerance=1e-3) is None


def test_other_draws_are_no_small_error() -> None:
    verdict = taken().compare(taken(lambda: train(seed=1)), tolerance=1e-3)
    assert verdict is not None
    assert verdict.kind in ("random", "batch")


def test_nothing_is_left_behind() -> None:
    def patched() -> list[object]:
        return [
            nn.Module.__call__,
            torch.autograd.backward,
            torch.from_numpy,
            torch.as_tensor,
            torch.optim.Optimizer.add_param_group,
            torch.utils.data.dataloader._BaseDataLoaderIter.__next__,
            torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__,
            torch._C._len_torch_dispatch_stack(),
        ]

    before = patched()
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate()
    with Fingerprint():
        nn.Linear(2, 2, dtype=torch.float64)(torch.ones(1, 2, dtype=torch.float64))
        torch.set_rng_state(states[0])
    assert patched() == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    with pytest.raises(ZeroDivisionError), Fingerprint() as run:
        torch.ones(2).sum()
        print(1 / 0)
    assert patched() == before
    assert len(run.digest) == 64


def test_recording_changes_no_number() -> None:
    plain = train().state_dict()
    with Fingerprint():
        recorded = train().state_dict()
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)


def test_a_block_that_fails_is_told_as_such() -> None:
    def fails() -> None:
        torch.ones(2).sum()
        raise ValueError("bad label")

    with pytest.raises(ValueError, match="bad label"), Fingerprint() as failed:
        fails()
    verdict = taken(lambda: (torch.ones(2).sum(), torch.ones(3).sum())).compare(failed)
    assert verdict is not None
    assert verdict.kind == "crash"
    assert "ValueError: bad label" in verdict.summary


def test_one_fingerprint_within_another() -> None:
    with Fingerprint() as outer:
        torch.manual_seed(0)
        with Fingerprint() as inner:
            train()
    assert inner == taken()
    assert outer == taken(lambda: (torch.manual_seed(0), train()))


def test_what_other_threads_train_is_left_out() -> None:
    def beside() -> None:
        other = threading.Thread(target=train)
        other.start()
        other.join()
        torch.ones(2).sum()

    assert taken(beside) == taken(lambda: torch.ones(2).sum())


def test_a_fingerprint_is_taken_once() -> None:
    run = Fingerprint()
    with pytest.raises(PtoolsError, match="not taken yet"):
        print(run.digest)
    with run:
        torch.ones(2).sum()
    with pytest.raises(PtoolsError, match="is taken"), run:
        pass
    assert "fingerprint" in str(run)


def test_saved_and_loaded_it_is_the_same(folder: Path) -> None:
    first = taken()
    first.save("run.fp")
    loaded = Fingerprint.load("run.fp")
    assert loaded == first
    assert loaded.compare(taken()) is None
    with pytest.raises(UsageError, match="already exists"):
        first.save("run.fp")
    first.save("run.fp", force=True)
    assert [file.name for file in folder.iterdir()] == ["run.fp"]
    lines = gzip.decompress(Path("run.fp").read_bytes()).decode().splitlines()
    about = json.loads(lines[0])
    assert about["fingerprint"] == 1
    assert about["environment"]["torch"] == torch.__version__
    assert about["environment"]["threads"] == str(torch.get_num_threads())
    assert all(json.loads(line) for line in lines)


def test_what_is_not_the_same_around_the_runs_is_told() -> None:
    first, second = taken(), taken(lambda: train(noise=1e-3))
    elsewhere = {**first._about.environment, "torch": "1.0"}
    first._about = replace(first._about, environment=elsewhere)
    verdict = first.compare(second)
    assert verdict is not None
    assert f"not the same: torch, 1.0 and {torch.__version__}" in verdict.facts


def test_exact_and_not_exact_are_not_compared() -> None:
    with pytest.raises(PtoolsError, match="not recorded in the same way"):
        taken().compare(taken(exact=False))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[:-9], "damaged"),
        (lambda data: data[:4000] + b"?" + data[4001:], "damaged"),
        (lambda data: data[:20], "damaged"),
        (lambda data: b"", "is no record"),
        (lambda data: b"epoch,loss\n", "is no record"),
        (lambda data: gzip.compress(b'{"epoch": 1}'), "is no record"),
        (lambda data: gzip.compress(b'{"fingerprint": 9}'), "newer ptools"),
        (lambda data: gzip.compress(b'{"fingerprint": 1}'), "damaged"),
        (lambda data: gzip.compress(b"[" * 5000), "damaged"),
    ],
)
def test_a_file_that_is_no_whole_record_is_one_clear_error(
    damage: Callable[[bytes], bytes], says: str, folder: Path
) -> None:
    taken().save("whole.fp")
    Path("run.fp").write_bytes(damage(Path("whole.fp").read_bytes()))
    with pytest.raises(PtoolsError, match=says) as error:
        Fingerprint.load("run.fp")
    assert "run.fp" in error.value.message
    assert error.value.hint


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no record none\.fp"):
        Fingerprint.load("none.fp")


def test_the_file_depends_on_nothing_but_what_was_recorded() -> None:
    first, second = taken(), taken()
    same = replace(first._about, date="")
    assert whole(same, first._whole()) == whole(same, second._whole())

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trees import write_tree

from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.torchscript import read_torchscript
from ptools.checkpoint.pickles.nodes import storages

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Block(nn.Module):
    """Attributes of all kinds: only some are in a state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.count: int = 3
        self.register_buffer("kept", torch.arange(3.0), persistent=False)
        self.register_buffer("none", None)
        self.scale = nn.Parameter(torch.rand(3), requires_grad=False)
        self.register_parameter("missing", None)
        self.plain = torch.zeros(2)
        self.several = [torch.ones(1), torch.ones(2)]
        self.table = {"a": torch.ones(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.kept + self.count


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.tied = self.first
        self.seq = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), Block())
        self.part = nn.Parameter(self.first.weight[1:].detach())
        self.turned = nn.Parameter(torch.rand(2, 3).t())
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 2).double()])
        self.listed = nn.ParameterList([nn.Parameter(torch.rand(2))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.tied(x)


class OnCuda(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.device("cuda:1"))
        return x + torch.zeros(3, device="cpu").to(torch.device("cuda"))


class Remade(nn.Module):
    """Saves something else than its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]


def save(model: Any, path: Path) -> Path:
    torch.jit.save(model, str(path))
    return path


def scripted(model: nn.Module, path: Path) -> Path:
    return save(torch.jit.script(model), path)


def by_ptools(path: Path) -> Any:
    out = path.with_suffix(".zip.pt")
    out.unlink(missing_ok=True)
    write_tree(read_torchscript(path).root, out)
    return torch.load(out, weights_only=True)


def assert_as_torch_loads(path: Path) -> None:
    ours, theirs = by_ptools(path), torch.jit.load(path).state_dict()
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].equal(tensor)
        assert (ours[name].dtype, ours[name].stride(), ours[name].requires_grad) == (
            tensor.dtype,
            tensor.stride(),
            False,
        )
    assert groups(ours) == groups(theirs)


def groups(state: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    """The names that share memory."""
    places: dict[int, set[str]] = {}
    for name, tensor in state.items():
        places.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
    return {frozenset(names) for names in places.values()}


def edited(path: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with each record as `edit` gives it; None leaves it out."""
    out = path.with_suffix(".edited.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            if (data := edit(name, source.read(name))) is not None:
                target.writestr(name, data)
    return out


def test_a_scripted_model_becomes_its_state_dict(tmp_path: Path) -> None:
    path = scripted(Net(), tmp_path / "net.pt")
    assert "seq.2.scale" in by_ptools(path) and "tied.weight" in by_ptools(path)
    assert_as_torch_loads(path)
    checkpoint = read_torchscript(path)
    assert (checkpoint.format, checkpoint.files, checkpoint.notes) == ("TorchScript", (path,), [])


def test_a_traced_model_becomes_its_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    path = save(torch.jit.trace(model, torch.rand(1, 3, 8, 8)), tmp_path / "net.pt")
    assert list(by_ptools(path)) == list(model.state_dict())
    assert_as_torch_loads(path)


def test_a_torchvision_model_becomes_its_state_dict(tmp_path: Path, torchvision: Any) -> None:
    assert_as_torch_loads(scripted(torchvision.models.shufflenet_v2_x0_5(), tmp_path / "net.pt"))


def test_an_lstm_becomes_its_state_dict(tmp_path: Path) -> None:
    assert_as_torch_loads(scripted(nn.LSTM(3, 4, 2, bidirectional=True), tmp_path / "net.pt"))


def test_the_line_of_each_cuda_device_in_the_code_is_noted(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(OnCuda(), nn.Linear(3, 3)), tmp_path / "net.pt")
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("test_torchscript.py")]
        lines = archive.read(name).decode().splitlines()
    [note] = read_torchscript(path).notes
    numbers = [int(number) for number in re.findall(r"line (\d+)", note)]
    assert len(numbers) == 2
    assert all('torch.device("cuda' in lines[number - 1] for number in numbers)
    assert f"{name.partition('/')[2]}, line {numbers[0]}" in note


def test_constants_on_cuda_are_noted(tmp_path: Path) -> None:
    constant = torch.rand(3)
    path = save(torch.jit.trace(lambda x: x + constant, torch.rand(3)), tmp_path / "net.pt")
    assert not any("CUDA" in note for note in read_torchscript(path).notes)
    cpu, cuda = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    path = edited(
        path, lambda name, data: data.replace(cpu, cuda) if "constants.pkl" in name else data
    )
    notes = read_torchscript(path).notes
    assert any(note.startswith("a constant of its code stays on CUDA") for note in notes)


def test_locations_are_those_of_the_file(tmp_path: Path) -> None:
    path = scripted(nn.Linear(2, 2), tmp_path / "net.pt")
    cpu, cuda = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    path = edited(path, lambda name, data: data.replace(cpu, cuda) if "data.pkl" in name else data)
    found = storages(read_torchscript(path).root)
    assert [storage.location for storage in found] == ["cuda:0", "cuda:0"]


def test_a_frozen_model_has_no_names_left(tmp_path: Path) -> None:
    model = torch.jit.freeze(torch.jit.trace(nn.Linear(2, 2).eval(), torch.rand(1, 2)))
    path = save(model, tmp_path / "net.pt")
    assert by_ptools(path) == torch.jit.load(path).state_dict() == {}
    assert any("freeze" in note for note in read_torchscript(path).notes)


def test_a_module_that_makes_itself_by_code_is_noted(tmp_path: Path) -> None:
    path = scripted(nn.Sequential(nn.Linear(2, 2), Remade()), tmp_path / "net.pt")
    assert list(by_ptools(path)) == ["0.weight", "0.bias"]
    [note] = read_torchscript(path).notes
    assert note.startswith("1: restored by its own code")


def test_before_torch_1_5_all_other_tensors_are_buffers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    path = edited(
        scripted(model, tmp_path / "net.pt"),
        lambda name, data: re.sub(rb"  __buffers__ = .*\n", b"", data) if ".py" in name else data,
    )
    assert list(by_ptools(path)) == list(model.state_dict())
    [note] = read_torchscript(path).notes
    assert "before 1.5" in note


@pytest.mark.parametrize("lost", ["linear", "container", "test_torchscript"])
def test_an_archive_without_its_code_is_refused(tmp_path: Path, lost: str) -> None:
    path = scripted(Net(), tmp_path / "net.pt")
    # Of a class that was scripted before, the code is in linear/___torch_mangle_0.py.
    is_lost = re.compile(rf"{lost}(/\w+)?\.py$").search
    path = edited(path, lambda name, data: None if is_lost(name) else data)
    with pytest.raises(CorruptCheckpoint, match="lacks the code of"):
        read_torchscript(path)


def test_an_archive_without_its_pickle_is_another_kind(tmp_path: Path) -> None:
    path = scripted(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(NotACheckpoint, match=r"no data\.pkl"):
        read_torchscript(edited(path, lambda name, data: None if "data.pkl" in name else data))

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from trees import write_tree

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats import find_checkpoints, open_checkpoint
from ptools.checkpoint.formats.safetensors import ALIASES, DTYPES, ORDER, read_safetensors
from ptools.checkpoint.pickles.nodes import storages
from ptools.checkpoint.pickles.tensors import named_tensors
from ptools.errors import PtoolsError, UsageError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NEXT = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Checkpoint], Any]:
    """What torch makes of a tree."""

    def load(checkpoint: Checkpoint) -> Any:
        path = tmp_path / "written.pt"
        path.unlink(missing_ok=True)
        write_tree(checkpoint.root, path)
        return torch.load(path, weights_only=True)

    return load


def same(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == truth.keys() and all(
        (ours[name].dtype, ours[name].shape, ours[name].stride())
        == (tensor.dtype, tensor.shape, tensor.stride())
        and bits(ours[name]) == bits(tensor)
        for name, tensor in truth.items()
    )


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def hostile(path: Path, header: object, data: bytes = bytes(8), raw: bytes | None = None) -> Path:
    text = json.dumps(header).encode() if raw is None else raw
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def every_dtype() -> dict[str, torch.Tensor]:
    tensors = {}
    for name in DTYPES.values():
        dtype = getattr(torch, name)
        tensors[name] = (torch.arange(48, dtype=torch.uint8) % 2).view(dtype).reshape(2, -1)
    return tensors


def test_safetensors_of_every_dtype_read_as_safetensors_reads_them(
    tmp_path: Path, loaded: Callable[[Checkpoint], Any]
) -> None:
    path = tmp_path / "m.safetensors"
    tensors = every_dtype() | {"pt": torch.tensor(1.5), "empty": torch.empty(0, 3)}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.files, checkpoint.notes) == ("safetensors", (path,), [])
    truth = safetensors.torch.load_file(path)
    assert len(truth) == len(DTYPES) + 2
    assert same(loaded(checkpoint), truth)


def test_names_that_save_model_left_out_come_back_shared(
    tmp_path: Path, loaded: Callable[[Checkpoint], Any]
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_model(model, str(path))
    assert len(safetensors.torch.load_file(path)) == 1
    checkpoint = open_checkpoint(path)
    state = loaded(checkpoint)
    model.load_state_dict(state, strict=True)
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert any("head.weight" in note for note in checkpoint.notes)


def test_our_own_aliases_and_order_come_back(
    tmp_path: Path, loaded: Callable[[Checkpoint], Any]
) -> None:
    path = tmp_path / "m.safetensors"
    names = ["z", "alias", "a"]
    metadata = {ALIASES: json.dumps({"alias": "a"}), ORDER: json.dumps(names), "z": "a"}
    tensors = {"a": torch.rand(4, 2).bfloat16(), "z": torch.rand(3)}
    safetensors.torch.save_file(tensors, path, metadata)
    checkpoint = read_safetensors(path)
    assert len(storages(checkpoint.root)) == 2
    state = loaded(checkpoint)
    assert list(state) == names
    assert same(state, tensors | {"alias": tensors["a"]})
    assert state["alias"].data_ptr() == state["a"].data_ptr()


HOSTILE: dict[str, tuple[object, bytes]] = {
    "not an object": ([1], bytes(8)),
    "no object for a tensor": ({"a": 1}, bytes(8)),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": ({"a": {**F32, "dtype": "F6_E2M3"}}, bytes(8)),
    "gap at the start": ({"a": NEXT}, bytes(16)),
    "gap in the middle": ({"a": F32, "b": {**NEXT, "data_offsets": [12, 20]}}, bytes(20)),
    "overlap": ({"a": F32, "b": {**NEXT, "data_offsets": [4, 12]}}, bytes(12)),
    "two names on the same bytes": ({"a": F32, "b": F32}, bytes(8)),
    "bytes behind": ({"a": F32}, bytes(9)),
    "cut short": ({"a": F32}, bytes(7)),
    "wrong length": ({"a": {**F32, "shape": [3]}}, bytes(8)),
    "negative shape": ({"a": {**F32, "shape": [-1, -2]}}, bytes(8)),
    "fractional shape": ({"a": {**F32, "shape": [2.0]}}, bytes(8)),
    "boolean shape": ({"a": {**F32, "shape": [2, True]}}, bytes(8)),
    "infinite shape": ({"a": {**F32, "shape": [float("inf")]}}, bytes(8)),
    "end before begin": ({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    "huge shape": ({"a": {**F32, "shape": [2**62] * 64}}, bytes(8)),
    "a million dimensions": ({"a": {**F32, "shape": [2**62] * 1_000_000}}, bytes(8)),
    "half a byte": ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "alias to nothing": ({"__metadata__": {ALIASES: '{"b": "c"}'}, "a": F32}, bytes(8)),
    "alias that is stored": ({"__metadata__": {ALIASES: '{"a": "a"}'}, "a": F32}, bytes(8)),
    "aliases in bad JSON": ({"__metadata__": {ALIASES: "{"}, "a": F32}, bytes(8)),
    "order of dicts": ({"__metadata__": {ORDER: "[{}]"}, "a": F32}, bytes(8)),
    "half a surrogate": ({"\ud800": F32}, bytes(8)),
}
HOSTILE_TEXTS = {
    "twins": b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2),
    "bad JSON": b'{"a": ',
    "deep JSON": b'{"a":' * 100_000,
    "bad UTF-8": b'{"\xff":1}',
    "a number of a million digits": b'{"a":' + b"1" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptCheckpoint):
        read_safetensors(hostile(tmp_path / "m", *HOSTILE[case]))


@pytest.mark.parametrize("case", HOSTILE_TEXTS)
def test_a_hostile_header_text_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptCheckpoint, match="bad JSON"):
        open_checkpoint(hostile(tmp_path / "m", None, raw=HOSTILE_TEXTS[case]))


def test_the_hostile_headers_differ_from_a_sound_one_only_in_their_fault(tmp_path: Path) -> None:
    sound = hostile(tmp_path / "m", {"a": F32, "b": NEXT}, bytes(16))
    assert list(named_tensors(open_checkpoint(sound).root)) == ["a", "b"]


@pytest.mark.parametrize("nbytes", [100_000_001, 1 << 39])
def test_a_huge_header_is_refused_unread(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "m"
    with path.open("wb") as file:
        file.write(nbytes.to_bytes(8, "little") + b'{"')
        file.truncate(200_000_000)
    with pytest.raises(CorruptCheckpoint, match="should be small"):
        open_checkpoint(path)


def test_a_safetensors_file_that_is_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.rand(1000)}, path)
    size = path.stat().st_size
    os.truncate(path, size - 1234)
    with pytest.raises(CorruptCheckpoint, match=f"1,234 bytes of {size:,} are missing"):
        open_checkpoint(path)
    os.truncate(path, 20)
    with pytest.raises(CorruptCheckpoint, match="cut short, within its header"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def sharded(
    tmp_path_factory: pytest.TempPathFactory, torchvision: Any
) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny model that transformers has saved in shards, and its state_dict."""
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("sharded")
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, n_positions=16))
    model.save_pretrained(folder, max_shard_size="4KB")
    return folder, model.state_dict()


def test_shards_that_transformers_wrote_become_one(
    sharded: tuple[Path, dict[str, torch.Tensor]], loaded: Callable[[Checkpoint], Any]
) -> None:
    folder, truth = sharded
    shards = set(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    checkpoint = open_checkpoint(folder)
    index = folder / "model.safetensors.index.json"
    assert checkpoint.format == "sharded safetensors"
    assert checkpoint.files[0] == index
    assert set(checkpoint.files[1:]) == shards
    state = loaded(checkpoint)
    assert same(state, truth)
    assert list(state) == list(json.loads(index.read_text())["weight_map"])
    assert find_checkpoints(folder) == [index]


def write_bin_shards(folder: Path) -> dict[str, torch.Tensor]:
    state = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)).state_dict()
    shards = {"a.bin": ["0.weight", "1.bias"], "b.bin": ["0.bias", "1.weight"]}
    for shard, names in shards.items():
        torch.save({name: state[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    write_index(folder, {name: weight_map[name] for name in state})
    return state


def write_index(folder: Path, weight_map: dict[str, Any]) -> Path:
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_of_torch_become_one_in_the_order_of_the_index(
    tmp_path: Path, loaded: Callable[[Checkpoint], Any]
) -> None:
    truth = write_bin_shards(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "sharded torch"
    assert checkpoint.notes == []
    state = loaded(checkpoint)
    assert list(state) == list(truth)
    assert same(state, truth)


def test_an_index_is_known_by_its_content(tmp_path: Path) -> None:
    write_bin_shards(tmp_path)
    index = (tmp_path / "pytorch_model.bin.index.json").rename(tmp_path / "weights")
    assert open_checkpoint(index).format == "sharded torch"


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    write_bin_shards(tmp_path)
    (tmp_path / "a.bin").unlink()
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"a\.bin, b\.bin"):
        open_checkpoint(tmp_path)


def test_a_tensor_must_be_in_the_shard_that_the_index_names(tmp_path: Path) -> None:
    write_bin_shards(tmp_path)
    write_index(tmp_path, {"0.weight": "b.bin"})
    with pytest.raises(CorruptCheckpoint, match=r"0\.weight is not in b\.bin"):
        open_checkpoint(tmp_path)


def test_tensors_that_the_index_does_not_list_are_noted(tmp_path: Path) -> None:
    write_bin_shards(tmp_path)
    index = write_index(tmp_path, {"0.weight": "a.bin"})
    assert open_checkpoint(index).notes == ["not in the index, left out: 1.bias of a.bin"]


@pytest.mark.parametrize(
    "shard", ["../a.bin", "/etc/passwd", "x/../../a.bin", "C:\\a.bin", "..\\a.bin", "", ".", 3]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, shard: object) -> None:
    with pytest.raises(CorruptCheckpoint, match="no file beside it"):
        open_checkpoint(write_index(tmp_path, {"w": shard}))


@pytest.mark.parametrize("weight_map", [{}, [], None])
def test_an_index_without_weights_is_refused(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(CorruptCheckpoint, match="no weight_map"):
        open_checkpoint(write_index(tmp_path, weight_map))


def test_an_index_of_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="JSON"):
        open_checkpoint(write_index(tmp_path, {"w": "pytorch_model.bin.index.json"}))


@pytest.mark.parametrize("shard", ["a\0b", "a" * 5000])
def test_a_shard_that_no_file_can_be_called_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(PtoolsError):
        open_checkpoint(write_index(tmp_path, {"w": shard}))


@pytest.mark.parametrize(
    ("old", "format"), [(False, "torch zip"), (True, "legacy")], ids=["zip", "legacy"]
)
def test_the_content_tells_the_format_not_the_name(tmp_path: Path, old: bool, format: str) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.rand(3)}, path, _use_new_zipfile_serialization=not old)
    assert format in open_checkpoint(path).format


def test_torchscript_is_told_from_a_saved_dict(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(path)
    assert "TorchScript" in open_checkpoint(path).format


def test_a_distributed_checkpoint_is_read_as_one(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "step_10"
    dcp.save({"a": torch.rand(3)}, checkpoint_id=folder, no_dist=True)
    assert find_checkpoints(tmp_path) == [folder]
    assert open_checkpoint(tmp_path).format == open_checkpoint(folder).format


def test_deepspeed_is_found_by_the_file_latest_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "global_step7").mkdir(parents=True)
    states = run / "global_step7" / "mp_rank_00_model_states.pt"
    torch.save({"module": {"a": torch.rand(3)}, "dp_world_size": 1}, states)
    assert find_checkpoints(tmp_path) == []
    assert find_checkpoints(run) == [run / "global_step7"]
    (run / "latest").write_text("global_step7")
    assert find_checkpoints(tmp_path) == [run]
    assert "DeepSpeed" in open_checkpoint(run).format


def test_a_folder_with_one_checkpoint_stands_for_it(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"  # as Lightning has it
    checkpoints.mkdir()
    torch.save({"a": torch.rand(3)}, checkpoints / "epoch=1.ckpt")
    (tmp_path / "hparams.yaml").write_text("{}")
    for folder in (tmp_path, checkpoints):
        assert open_checkpoint(folder).path == checkpoints / "epoch=1.ckpt"


def test_a_folder_with_several_lists_the_commands(tmp_path: Path) -> None:
    for name in ("best model.pth", "last.ckpt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(UsageError, match="holds 2 checkpoints") as caught:
        open_checkpoint(tmp_path)
    assert f"ptools fix-ckpt '{tmp_path}/best model.pth'\n" in caught.value.hint
    assert f"ptools fix-ckpt {tmp_path}/last.ckpt" in caught.value.hint


def test_a_folder_with_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint in the folder"):
        open_checkpoint(tmp_path)


def test_the_weights_of_a_trainer_folder_are_read_and_the_rest_is_noted(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.rand(3)}, tmp_path / "model.safetensors")
    for name in ("optimizer.pt", "training_args.bin"):
        torch.save({}, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path / "model.safetensors"
    assert checkpoint.notes == [
        "model.safetensors is read, not optimizer.pt, training_args.bin beside it"
    ]


def test_a_trainer_folder_of_deepspeed_gives_the_weights(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.rand(3)}, tmp_path / "model.safetensors")
    (tmp_path / "global_step7").mkdir()
    torch.save({}, tmp_path / "global_step7" / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("global_step7")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.notes == ["model.safetensors is read, not global_step7 beside it"]


def test_weights_that_are_a_git_lfs_pointer_are_not_passed_over(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\nsize 1\n"
    (tmp_path / "pytorch_model.bin").write_text(pointer)
    torch.save({}, tmp_path / "training_args.bin")
    with pytest.raises(NotACheckpoint, match="Git LFS pointer"):
        open_checkpoint(tmp_path)


def test_a_broken_index_hides_no_other_checkpoint(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    (tmp_path / "b.index.json").write_text("{")
    assert find_checkpoints(tmp_path) == [tmp_path / "a.pt", tmp_path / "b.index.json"]


def test_candidates_are_found_by_suffix_and_doubtful_ones_by_content(tmp_path: Path) -> None:
    wanted = ["a.pt", "b.pth", "c.bin", "d.ckpt", "e.pth.tar", "f.tar", "g.model"]
    for name in [*wanted, ".hidden.pt", "notes.txt"]:
        torch.save({}, tmp_path / name)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (tmp_path / "data.bin").write_bytes(bytes(100))
    (tmp_path / "data.tar").write_bytes(bytes(1024))
    assert [path.name for path in find_checkpoints(tmp_path)] == wanted


def test_reading_a_small_file_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.rand(3)}, path)
    code = (
        "import sys; from pathlib import Path; from ptools.checkpoint.formats import *;"
        f"open_checkpoint(Path({str(path)!r}));"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

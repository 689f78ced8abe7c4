import argparse
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from trees import write_tree

from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.deepspeed import read_deepspeed
from ptools.checkpoint.pickles.nodes import storages

WORLD = 3
MODEL, STAGE_3_MODEL = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_model_states.pt"


class Stage(IntEnum):
    """DeepSpeed writes the stage as a member of such an enum."""

    ONE = 1
    TWO = 2
    THREE = 3


class Net(torch.nn.Module):
    """Tied and frozen parameters, a scalar, sizes that no number of ranks divides, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.frozen = torch.nn.Linear(5, 4).requires_grad_(False)
        self.body = torch.nn.Linear(5, 5)
        self.scale = torch.nn.Parameter(torch.rand(()))
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.rand(3, 3) > 0.5)


def trained() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.uniform_()
    return net


def groups_of(net: Net) -> list[dict[str, torch.Tensor]]:
    """Two groups, in an order that is not the model's."""
    named = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    with_decay = {name: p for name, p in reversed(named.items()) if p.dim() > 1}
    return [with_decay, {name: p for name, p in named.items() if p.dim() < 2}]


def model_states(net: Net, module: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """What `DeepSpeedEngine._save_checkpoint` writes."""
    return {
        "module": module,
        "buffer_names": [name for name, _ in net.named_buffers()],
        "optimizer": None,
        "param_shapes": [
            OrderedDict((name, tensor.shape) for name, tensor in group.items())
            for group in groups_of(net)
        ],
        "frozen_param_shapes": None,
        "shared_params": {"head.weight": "embedding.weight"},
        "frozen_param_fragments": None,
        "lr_scheduler": {"last_epoch": 4},
        "global_steps": 17,
        "dp_world_size": WORLD,
        "mp_world_size": 1,
        "ds_config": {"train_batch_size": 8},
        "ds_version": "0.19.8",
        "epoch": 2,
        "args": argparse.Namespace(lr=0.1),
        **more,
    }


def frozen_of(net: Net) -> OrderedDict[str, torch.Tensor]:
    named = net.named_parameters()
    return OrderedDict((name, p.detach().half()) for name, p in named if not p.requires_grad)


def half(net: Net) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        (name, tensor.half() if tensor.is_floating_point() else tensor)
        for name, tensor in net.state_dict().items()
    )


def padded(vector: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.cat([vector, torch.full((-len(vector) % multiple,), torch.nan)])


def save_stage_2(folder: Path, prefix: str = "", aligned: bool = False, **optimizer: Any) -> Path:
    """Each group as one vector, its parts on the ranks, the last without the padding."""
    folder.mkdir(parents=True)
    net = trained()
    frozen = frozen_of(net)
    shapes = OrderedDict((name, tensor.shape) for name, tensor in frozen.items())
    more = {"frozen_param_shapes": shapes, "frozen_param_fragments": frozen}
    torch.save(model_states(net, half(net), **more), folder / MODEL)
    ranks: list[list[torch.Tensor]] = [[] for _ in range(WORLD)]
    paddings = []
    for group in groups_of(net):
        flat = [padded(p.flatten(), 8 if aligned else 1) for p in group.values()]
        paddings.append([len(a) - b.numel() for a, b in zip(flat, group.values(), strict=True)])
        vector = torch.cat(flat)
        parts = padded(vector, 2 * WORLD).chunk(WORLD)
        used = [len(part) for part in parts[:-1]]
        for rank, part in zip(ranks, parts, strict=True):
            rank.append(part)
        ranks[-1][-1] = parts[-1][: len(vector) - sum(used)]  # a view: its storage keeps the rest
    if aligned:
        optimizer["param_alignment_paddings"] = paddings
    for rank, partitions in enumerate(ranks):
        state = {
            "zero_stage": Stage.TWO,
            "partition_count": [WORLD, WORLD],
            "single_partition_of_fp32_groups": partitions,
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.rand(9)}}},
            **optimizer,
        }
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, folder / name)
    return folder


def shares(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return padded(tensor.flatten(), WORLD).chunk(WORLD)


def save_stage_3(folder: Path) -> Path:
    """Each parameter cut into as many parts as there are ranks; `module` holds none of them."""
    folder.mkdir(parents=True)
    net, frozen = trained(), frozen_of(trained())
    buffers = dict(net.named_buffers())
    module = OrderedDict(
        (name, tensor if name in buffers else torch.empty(0))
        for name, tensor in net.state_dict().items()
    )
    shapes = OrderedDict((name, tensor.shape) for name, tensor in frozen.items())
    for rank in range(WORLD):
        fragments = OrderedDict((name, shares(tensor)[rank]) for name, tensor in frozen.items())
        more = {"frozen_param_shapes": shapes, "frozen_param_fragments": fragments}
        torch.save(model_states(net, module, **more), folder / STAGE_3_MODEL.format(rank))
        flat = [torch.cat([shares(p)[rank] for p in g.values()]) for g in groups_of(net)]
        state = {
            "zero_stage": Stage.THREE,
            "partition_count": WORLD,
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.rand(9)}}},
            "fp32_flat_groups": flat,
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, folder / name)
    return folder


def load(folder: Path, out: Path) -> Any:
    write_tree(read_deepspeed(folder).root, out)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(out, weights_only=True)


def by_deepspeed(folder: Path) -> dict[str, torch.Tensor]:
    zero_to_fp32 = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    found = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(folder.parent, folder.name)
    assert isinstance(found, dict)
    return found


SAVERS: dict[str, Callable[[Path], Path]] = {
    "stage 2": save_stage_2,
    "bf16": lambda folder: save_stage_2(folder, prefix="bf16_"),
    "stage 2, aligned": lambda folder: save_stage_2(folder, aligned=True),
    "stage 3": save_stage_3,
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_weights_are_those_of_deepspeeds_own_script(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = save(tmp_path / "global_step17")
    ours, theirs = load(folder, tmp_path / "out.pt")["module"], by_deepspeed(folder)
    assert list(ours) == list(trained().state_dict())
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        mine = ours[name]
        assert (mine.dtype, mine.stride()) == (tensor.dtype, tensor.stride())
        assert mine.equal(tensor), name


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_weights_are_those_of_the_model(save: Callable[[Path], Path], tmp_path: Path) -> None:
    ours = load(save(tmp_path / "folder"), tmp_path / "out.pt")["module"]
    for name, parameter in trained().named_parameters():
        assert ours[name].equal(parameter if parameter.requires_grad else parameter.half()), name
    assert ours["head.weight"].data_ptr() == ours["embedding.weight"].data_ptr()
    other = Net()
    other.load_state_dict(ours)


def test_the_rest_of_the_models_file_stays_and_the_optimizer_goes(tmp_path: Path) -> None:
    folder = save_stage_3(tmp_path / "folder")
    loaded = load(folder, tmp_path / "out.pt")
    assert list(loaded) == [
        *("module", "lr_scheduler", "global_steps", "dp_world_size", "mp_world_size"),
        *("ds_config", "ds_version", "epoch", "args"),
    ]
    assert loaded["lr_scheduler"] == {"last_epoch": 4}
    assert loaded["args"].lr == 0.1
    checkpoint = read_deepspeed(folder)
    assert checkpoint.format == "DeepSpeed ZeRO"
    assert set(checkpoint.files) == set(folder.iterdir())
    assert checkpoint.notes == [
        "the weights are what ZeRO 3 kept in fp32 on 3 ranks, put together; "
        "the optimizer's state is left out"
    ]


def test_the_folder_that_latest_names_is_read(tmp_path: Path) -> None:
    save_stage_2(tmp_path / "global_step17")
    (tmp_path / "latest").write_text("global_step17\n")
    assert read_deepspeed(tmp_path).path == tmp_path / "global_step17"
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(CorruptCheckpoint, match="no folder beside it"):
        read_deepspeed(tmp_path)


def test_frozen_weights_that_only_the_16_bit_module_holds_are_kept(tmp_path: Path) -> None:
    folder = save_stage_2(tmp_path / "folder")
    net = trained()
    torch.save(model_states(net, half(net)), folder / MODEL)
    ours = load(folder, tmp_path / "out.pt")["module"]
    assert list(ours) == list(net.state_dict())
    assert ours["frozen.weight"].equal(net.frozen.weight.half())
    assert ours["body.weight"].equal(net.body.weight)


def test_without_zero_the_module_is_taken_as_it_is(tmp_path: Path) -> None:
    net = trained()
    states = model_states(net, half(net), param_shapes=None, optimizer={"state": {}})
    torch.save(states, tmp_path / MODEL)
    loaded = load(tmp_path, tmp_path / "out.pt")
    assert loaded["optimizer"] == {"state": {}}
    assert loaded["module"]["body.weight"].equal(net.body.weight.half())
    assert read_deepspeed(tmp_path).notes == []


def test_without_optimizer_files_the_16_bit_weights_are_read_and_this_is_told(
    tmp_path: Path,
) -> None:
    folder = save_stage_2(tmp_path / "folder")
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    [note] = read_deepspeed(folder).notes
    assert "16-bit" in note
    folder = save_stage_3(tmp_path / "other")
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    with pytest.raises(CorruptCheckpoint, match="which hold the weights"):
        read_deepspeed(folder)


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("kind", ["optim", "model"])
def test_a_missing_file_of_a_rank_is_named(tmp_path: Path, rank: int, kind: str) -> None:
    folder = save_stage_3(tmp_path / "folder")
    name = f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
    (folder / name).unlink()
    with pytest.raises((CorruptCheckpoint, NotACheckpoint)) as caught:
        read_deepspeed(folder)
    assert name in caught.value.message or (rank == 0 and "of rank 0" in caught.value.message)


def test_a_file_too_many_is_refused(tmp_path: Path) -> None:
    folder = save_stage_3(tmp_path / "folder")
    extra = folder / "zero_pp_rank_3_mp_rank_00_optim_states.pt"
    extra.write_bytes((folder / "zero_pp_rank_2_mp_rank_00_optim_states.pt").read_bytes())
    with pytest.raises(CorruptCheckpoint, match=r"rank_3.*3 ranks saved this one"):
        read_deepspeed(folder)
    extra.rename(folder / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt")
    with pytest.raises(CorruptCheckpoint, match="two files of rank 2"):
        read_deepspeed(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mp_rank_01_model_states.pt", "tensor parallelism"),
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallelism"),
        ("layer_00-model_00-model_states.pt", "pipeline or expert"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "pipeline or expert"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "pipeline or expert"),
    ],
)
def test_models_split_in_other_ways_are_refused(tmp_path: Path, name: str, why: str) -> None:
    folder = save_stage_2(tmp_path / "folder")
    (folder / name).write_bytes(b"")
    with pytest.raises(NotACheckpoint, match=why):
        read_deepspeed(folder)


def test_other_folders_are_no_deepspeed_folders(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="of rank 0"):
        read_deepspeed(tmp_path)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    state = torch.load(path, weights_only=False)
    edit(state)
    torch.save(state, path)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a huge shape": lambda state: state["param_shapes"][0].update(x=torch.Size((1 << 60,))),
    "a negative size": lambda state: state["param_shapes"][0].update(x=(-7,)),
    "a size of text": lambda state: state["param_shapes"][0].update(x=("a",)),
    "no shapes": lambda state: state.pop("param_shapes"),
    "fewer groups": lambda state: state["param_shapes"].pop(),
    "fewer parameters": lambda state: state["param_shapes"][0].popitem(),
    "no module": lambda state: state.pop("module"),
    "a module of text": lambda state: state.update(module="text"),
    "frozen shapes of text": lambda state: state.update(frozen_param_shapes={"x": "text"}),
    "frozen fragments of text": lambda state: state.update(
        frozen_param_shapes={"x": torch.Size([1])}, frozen_param_fragments={"x": "text"}
    ),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("stage", [2, 3])
def test_model_files_that_do_not_add_up_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], stage: int
) -> None:
    folder = (save_stage_2 if stage == 2 else save_stage_3)(tmp_path / "folder")
    change(folder / (MODEL if stage == 2 else STAGE_3_MODEL.format(0)), edit)
    with pytest.raises(CorruptCheckpoint):
        load(folder, tmp_path / "out.pt")


@pytest.mark.parametrize(
    "count", [1 << 60, 0, -1, [], "three", None, [1 << 60], torch.ones(1), 2.5]
)
def test_numbers_of_ranks_that_do_not_add_up_are_refused(tmp_path: Path, count: object) -> None:
    folder = save_stage_2(tmp_path / "folder", partition_count=count)
    with pytest.raises(CorruptCheckpoint):
        read_deepspeed(folder)


def test_optimizer_files_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = save_stage_2(tmp_path / "folder", zero_stage=0)
    with pytest.raises(NotACheckpoint, match="no fp32 weights"):
        read_deepspeed(folder)
    torch.save({"a": 1}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(NotACheckpoint, match="no optimizer file of ZeRO"):
        read_deepspeed(folder)


def test_partitions_are_not_held(tmp_path: Path) -> None:
    vectors = torch.rand(WORLD, 2_000_000)
    shapes = [OrderedDict((f"w{i}", torch.Size((600, 1000))) for i in range(10))]
    net = trained()
    torch.save(model_states(net, half(net), param_shapes=shapes), tmp_path / MODEL)
    for rank in range(WORLD):
        state = {"zero_stage": 2, "partition_count": WORLD}
        state["single_partition_of_fp32_groups"] = [vectors[rank].clone()]
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, tmp_path / name)
    tracemalloc.start()
    found = {storage.key: storage for storage in storages(read_deepspeed(tmp_path).root)}
    whole = vectors.flatten().view(10, 600_000)
    for number, tensor in enumerate(whole):
        start = 0
        for piece in found[f"w{number}"].content.pieces():
            part = tensor[start // 4 : (start + piece.nbytes) // 4]
            assert piece.read() == part.numpy().tobytes()
            start += piece.nbytes
        assert start == tensor.nbytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20

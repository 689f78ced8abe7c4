import math
import pickle
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from trees import write_tree

from ptools.checkpoint.data.content import PIECE
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.dcp import read_dcp
from ptools.checkpoint.pickles.nodes import storages

# Saves without a process group warn that they do.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed:UserWarning")


def save(state: dict[str, Any], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def by_ptools(folder: Path) -> Any:
    out = folder.with_suffix(".ptools.pt")
    write_tree(read_dcp(folder).root, out)
    return torch.load(out, weights_only=True)


def by_torch(folder: Path) -> Any:
    out = folder.with_suffix(".torch.pt")
    dcp_to_torch_save(folder, out)
    return torch.load(out, weights_only=True)


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        )
        assert ours.view(-1).view(torch.uint8).equal(theirs.contiguous().view(-1).view(torch.uint8))
    else:
        assert ours == theirs


def change(folder: Path, edit: Callable[[Metadata], None]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.uint8, torch.bool, torch.uint16, torch.complex64, torch.complex128),
]


def bytes_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of random bits that are 0 or 1 in each byte, so that bool is sound."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 2, (nbytes,), dtype=torch.uint8).view(dtype).view(shape)


def test_a_nested_state_dict_comes_back_as_torch_rebuilds_it(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "list": [torch.ones(2), {"a": 1, "b": [torch.zeros(1), 5]}, "text"],
        "epoch": 3,
        "args": {"lr": 0.1, "betas": (0.9, 0.999), "none": None},
    }
    folder = save(state, tmp_path / "folder")
    assert_same(by_ptools(folder), by_torch(folder))
    checkpoint = read_dcp(folder)
    assert checkpoint.format == "DCP folder"
    assert checkpoint.files == (folder / ".metadata", folder / "__0_0.distcp")


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = save(
        {str(dtype): bytes_of(dtype, 5, 3) for dtype in DTYPES} | {"scalar": torch.tensor(2.0)},
        tmp_path / "folder",
    )
    assert_same(by_ptools(folder), by_torch(folder))


def test_tensors_saved_with_other_strides_become_contiguous(tmp_path: Path) -> None:
    state = {
        "channels_last": torch.rand(6, 5, 3, 3).to(memory_format=torch.channels_last),
        "transposed": torch.rand(300, 700).t(),
        "larger than a piece": bytes_of(torch.complex128, 250, 400).t(),
        "view": torch.arange(100)[10:20],
        "every second": torch.arange(100)[::2],
        "expanded": torch.ones(1).expand(5, 2),
        "empty": torch.empty(0, 3),
    }
    folder = save(state, tmp_path / "folder")
    assert_same(by_ptools(folder), by_torch(folder))


def test_without_planner_data_names_stay_flat(tmp_path: Path) -> None:
    folder = save({"model": {"w": torch.ones(2)}}, tmp_path / "folder")
    change(folder, lambda metadata: setattr(metadata, "planner_data", None))
    assert list(by_ptools(folder)) == ["model.w"]


def train_and_save(rank: int, world: int, folder: Path) -> None:
    """What each rank does: FSDP2, DTensors of several placements, FSDP1 in its two forms."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(0)

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3, bias=False))

    mesh = init_device_mesh("cpu", (world,))
    fsdp2 = model()
    fully_shard(fsdp2, mesh=mesh)
    optimizer = torch.optim.AdamW(fsdp2.parameters())
    fsdp2(torch.rand(2, 7)).sum().backward()
    optimizer.step()
    weights, state = get_state_dict(fsdp2, optimizer)
    dcp.save({"model": weights, "optim": state, "step": 1}, checkpoint_id=folder / "fsdp2")

    placements = [Shard(0)], [Shard(1)], [Shard(2)], [Replicate()]
    whole = {
        "odd": torch.rand(5, 7, 6),
        "one": torch.rand(1, 4, 3),
        "large": torch.rand(6, 300, 400),
        "wide": torch.rand(2, 3, 400_000),
        "channels_last": torch.rand(4, 6, 3, 5).to(memory_format=torch.channels_last),
        "bytes": torch.randint(0, 255, (9, 5, 7), dtype=torch.uint8),
        "complex": torch.rand(3, 5, 4, dtype=torch.complex128),
    }
    pieces = {
        f"{name} {placement}": distribute_tensor(tensor.clone(), mesh, placement)
        for name, tensor in whole.items()
        for placement in placements
    }
    columns = torch.rand(300, 500).t()
    pieces["transposed"] = DTensor.from_local(columns, mesh, [Shard(1)], run_check=False)
    dcp.save({"tensors": pieces, "plain": torch.arange(3)}, checkpoint_id=folder / "dtensor")

    for kind in (StateDictType.SHARDED_STATE_DICT, StateDictType.LOCAL_STATE_DICT):
        fsdp1 = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
        with FullyShardedDataParallel.state_dict_type(fsdp1, kind):
            dcp.save({"model": fsdp1.state_dict()}, checkpoint_id=folder / kind.name.lower())

    if world == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        both = {
            "grid": distribute_tensor(torch.rand(7, 9), grid, [Shard(0), Shard(1)]),
            "columns": distribute_tensor(torch.rand(7, 9), grid, [Shard(1), Shard(1)]),
            "mixed": distribute_tensor(torch.rand(7, 9), grid, [Replicate(), Shard(1)]),
        }
        dcp.save(both, checkpoint_id=folder / "grid")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_and_save, (4, folder), nprocs=4)
    return folder


@pytest.mark.parametrize(
    "name", ["fsdp2", "dtensor", "sharded_state_dict", "local_state_dict", "grid"]
)
def test_shards_of_several_ranks_become_the_tensors_that_torch_makes(
    saved: Path, name: str
) -> None:
    assert len(read_dcp(saved / name).files) > 2
    assert_same(by_ptools(saved / name), by_torch(saved / name))


Box = tuple[slice, ...]


class At:
    def __getitem__(self, box: Box) -> Box:
        return box


at = At()


def sharded(tensor: torch.Tensor, boxes: list[Box], folder: Path) -> Path:
    """A folder with one tensor "w", saved as these boxes of it."""
    save({str(number): tensor[box].contiguous() for number, box in enumerate(boxes)}, folder)
    places = [
        [box[axis].start or 0 if axis < len(box) else 0 for axis in range(tensor.dim())]
        for box in boxes
    ]

    def join(metadata: Metadata) -> None:
        parts = [metadata.state_dict_metadata[str(number)] for number in range(len(boxes))]
        chunks = [
            ChunkStorageMetadata(torch.Size(place), part.size)
            for place, part in zip(places, parts, strict=True)
        ]
        metadata.state_dict_metadata = {
            "w": TensorStorageMetadata(parts[0].properties, tensor.shape, chunks)
        }
        metadata.storage_data = {
            MetadataIndex("w", places[int(index.fqn)], int(index.fqn)): info
            for index, info in metadata.storage_data.items()
        }
        metadata.planner_data = {"w": ("w",)}

    change(folder, join)
    return folder


def halves(folder: Path) -> Path:
    return sharded(torch.rand(4, 6), [at[:, :3], at[:, 3:]], folder)


def test_boxes_that_no_grid_makes_are_put_together(tmp_path: Path) -> None:
    pinwheel = [at[:2, :3], at[:3, 3:], at[3:, 2:], at[2:, :2], at[2:3, 2:3]]
    tensor = torch.rand(5, 5)
    folder = sharded(tensor, pinwheel, tmp_path / "folder")
    assert_same(by_ptools(folder), {"w": tensor})
    assert_same(by_torch(folder), {"w": tensor})


def test_columns_are_read_in_large_pieces_and_little_memory(tmp_path: Path) -> None:
    tensor = torch.rand(2048, 4096)
    columns = [at[:, start : start + 512] for start in range(0, 4096, 512)]
    folder = sharded(tensor, columns, tmp_path / "folder")
    tracemalloc.start()
    [storage] = storages(read_dcp(folder).root)
    start, whole = 0, tensor.numpy().tobytes()
    for piece in storage.content.pieces():
        assert PIECE // 2 < piece.nbytes <= PIECE
        assert piece.read() == whole[start : start + piece.nbytes]
        start += piece.nbytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert start == tensor.nbytes
    assert peak - len(whole) < 8 << 20


def test_rows_keep_the_checksum_of_the_whole(tmp_path: Path) -> None:
    folder = sharded(torch.rand(6, 4), [at[:1,], at[1:3,], at[3:,]], tmp_path / "folder")
    [storage] = storages(read_dcp(folder).root)
    data = b"".join(piece.read() for piece in storage.content.pieces())
    assert storage.content.crc == zlib.crc32(data)


def test_a_hole_is_refused(tmp_path: Path) -> None:
    folder = halves(tmp_path / "folder")
    change(folder, lambda metadata: metadata.state_dict_metadata["w"].chunks.pop())
    with pytest.raises(CorruptCheckpoint, match=r"w cannot be put .* lack 12 of its elements"):
        read_dcp(folder)


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (0, 4), (1, 3)])
def test_shards_that_overlap_or_stick_out_are_refused(
    tmp_path: Path, place: tuple[int, int]
) -> None:
    folder = halves(tmp_path / "folder")

    def move(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].chunks[1].offsets = torch.Size(place)

    change(folder, move)
    with pytest.raises(CorruptCheckpoint, match="w cannot be put together: its shards overlap"):
        read_dcp(folder)


def test_a_tensor_larger_than_its_shards_is_refused(tmp_path: Path) -> None:
    folder = halves(tmp_path / "folder")

    def grow(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size((1 << 60, 6))

    change(folder, grow)
    with pytest.raises(CorruptCheckpoint, match="w cannot be put together"):
        read_dcp(folder)


def test_a_shard_of_another_shape_than_promised_is_refused(tmp_path: Path) -> None:
    folder = sharded(torch.rand(4, 6), [at[:, :]], tmp_path / "folder")

    def shrink(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size((4, 5))
        metadata.state_dict_metadata["w"].chunks[0].sizes = torch.Size((4, 5))

    change(folder, shrink)
    with pytest.raises(CorruptCheckpoint, match=r"w has a shard float32 of \[4, 6\], not float32"):
        read_dcp(folder)


def set_info(folder: Path, name: str, value: object) -> None:
    def edit(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            setattr(info, name, value)

    change(folder, edit)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a/b", "n\0ul", "x" * 999])
def test_files_outside_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"PK")
    folder = halves(tmp_path / "folder")
    set_info(folder, "relative_path", name)
    with pytest.raises(CorruptCheckpoint, match=r"outside of the folder|is missing"):
        read_dcp(folder)


def test_safetensors_and_extensions_are_refused_by_name(tmp_path: Path) -> None:
    folder = halves(tmp_path / "folder")
    set_info(folder, "relative_path", "model-00001.safetensors")
    with pytest.raises(NotACheckpoint, match="safetensors"):
        read_dcp(folder)
    folder = halves(tmp_path / "other")
    set_info(folder, "transform_descriptors", ["stream.zstd"])
    with pytest.raises(NotACheckpoint, match="extension"):
        read_dcp(folder)


def test_a_missing_or_short_file_names_what_it_held(tmp_path: Path) -> None:
    state = {f"w{number}": torch.rand(number + 1) for number in range(5)}
    folder = save(state, tmp_path / "folder")
    file = folder / "__0_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CorruptCheckpoint, match=r"ends early: it should hold w4$"):
        read_dcp(folder)
    file.unlink()
    with pytest.raises(CorruptCheckpoint, match="is missing: it should hold w0, w1, w2 and 2 more"):
        read_dcp(folder)


def test_other_folders_are_no_dcp_folders(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match=r"no \.metadata"):
        read_dcp(tmp_path)
    (tmp_path / "__0.metadata").write_bytes(b"")
    with pytest.raises(NotACheckpoint, match="for each rank"):
        read_dcp(tmp_path)


@pytest.mark.parametrize(
    "path", [("w", "x"), (), (1 << 40,), ("l", 1 << 40), ("w",) * 5000, (0.5,), ("l", -1), (None,)]
)
def test_paths_that_make_no_state_dict_are_refused(tmp_path: Path, path: tuple[Any, ...]) -> None:
    folder = save({"w": torch.ones(1), "v": 1}, tmp_path / "folder")
    change(folder, lambda metadata: metadata.planner_data.update(v=path))
    with pytest.raises(CorruptCheckpoint):
        read_dcp(folder)


def test_the_pickle_is_never_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    folder = halves(tmp_path / "folder")
    change(folder, lambda metadata: setattr(metadata, "storage_meta", Evil()))
    read_dcp(folder)
    assert not (tmp_path / "executed").exists()


def test_damaged_metadata_is_refused_with_a_sentence(tmp_path: Path) -> None:
    folder = halves(tmp_path / "folder")
    path = folder / ".metadata"
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with suppress(CorruptCheckpoint, NotACheckpoint):
            read_dcp(folder)
        path.write_bytes(whole[:place])
        with suppress(CorruptCheckpoint, NotACheckpoint):
            read_dcp(folder)


def test_metadata_of_older_versions_of_torch_is_read(tmp_path: Path) -> None:
    folder = halves(tmp_path / "folder")
    whole = by_torch(folder)

    def age(metadata: Metadata) -> None:
        del metadata.storage_meta, metadata.version

    change(folder, age)
    assert_same(by_ptools(folder), whole)


def test_a_tensor_still_to_be_conjugated_is_refused_rather_than_read_wrongly(
    tmp_path: Path,
) -> None:
    folder = save({"w": torch.rand(2, dtype=torch.complex64).conj()}, tmp_path / "folder")
    with pytest.raises(CorruptCheckpoint, match="no plain tensor"):
        read_dcp(folder)

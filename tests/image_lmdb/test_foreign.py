import copy
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from shards import write_shard

from ptools.errors import PtoolsError
from ptools.image_lmdb.database import open_images
from ptools.image_lmdb.datum import image_in, read_datum
from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
from ptools.image_lmdb.foreign import ForeignImages, open_foreign

Records = Mapping[bytes, bytes]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def pixels(seed: int, height: int = 60, width: int = 70) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, file_format: str = "PNG", side: int = 60) -> bytes:
    output = BytesIO()
    Image.fromarray(pixels(seed, side, side)).save(output, file_format)
    return output.getvalue()


def save(path: Path, records: Records, subdir: bool = True) -> Path:
    """Write a database as the tools do: one transaction, liblmdb's own files."""
    with (
        lmdb.open(str(path), map_size=64 << 20, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in records.items():
            transaction.put(key, value)
    return path


def opened(path: Path) -> ForeignImages:
    images = open_foreign(path)
    assert isinstance(images, ForeignImages)
    return images


def truth(path: Path, subdir: bool = True) -> dict[bytes, bytes]:
    """What liblmdb itself reads."""
    with (
        lmdb.open(str(path), readonly=True, lock=False, subdir=subdir) as environment,
        environment.begin() as transaction,
    ):
        return dict(transaction.cursor())


def _datum_class() -> Any:
    """Caffe's message, made by Google's protobuf from the lines of caffe.proto."""
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    message = file.message_type.add(name="Datum")
    types = {"channels": 3, "height": 3, "width": 3, "data": 12, "label": 3, "float_data": 2}
    for number, (name, kind) in enumerate({**types, "encoded": 8}.items(), 1):
        label = Field.LABEL_REPEATED if name == "float_data" else Field.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


Datum = _datum_class()


def datum(image: Pixels, label: int) -> bytes:
    """Pixels as convert_imageset stores what OpenCV has read: planes, BGR."""
    planes = image[:, :, ::-1].transpose(2, 0, 1)
    channels, height, width = planes.shape
    return bytes(
        Datum(
            channels=channels, height=height, width=width, data=planes.tobytes(), label=label
        ).SerializeToString()
    )


@pytest.mark.parametrize("subdir", [True, False])
def test_image_files_under_their_names_are_read_as_liblmdb_reads_them(
    folder: Path, subdir: bool
) -> None:
    records = {
        b"%s/%d" % (name, i): picture(i, FORMATS[i % len(FORMATS)])
        for name in (b"n02", b"n01")
        for i in range(9)
    }
    path = save(folder / "imgs.lmdb", records, subdir)
    images = opened(path)
    expected = truth(path, subdir)
    assert list(images.paths()) == [key.decode() for key in expected]
    assert [one.data for one in images.fetch(range(len(images)))] == list(expected.values())
    assert images.classes == ("n01", "n02")
    assert images.labels().tolist() == [0] * 9 + [1] * 9
    assert (images.path_of(-1), images.label_of(-1)) == ("n02/8", 1)
    assert images.kind == "image files by name"
    with pytest.raises(IndexError, match="has 18 images"):
        images.fetch([18])


def test_a_database_without_folders_is_one_class(folder: Path) -> None:
    hashes = {bytes(f"{i:040x}", "ascii"): picture(i, "WEBP") for i in range(5)}
    images = opened(save(folder / "bedroom_val_lmdb", hashes))
    assert images.classes == ("bedroom_val_lmdb",)
    assert opened(folder / "bedroom_val_lmdb" / "data.mdb").classes == images.classes
    assert set(images.labels()) == {0}


def test_classes_are_numbered_in_their_sorted_order(folder: Path) -> None:
    records = {name: picture(0) for name in (b"a.png", b"Z/1", b"b/1", b"a/1", b"c")}
    images = opened(save(folder / "m.lmdb", records))
    assert images.classes == ("Z", "a", "b", "m")
    assert [images.classes[label] for label in images.labels()] == ["Z", "m", "a", "b", "m"]


def test_names_may_be_any_bytes(folder: Path) -> None:
    key = b"caf\xe9/\xff.png"
    images = opened(save(folder / "i.lmdb", {key: picture(0)}))
    assert images.path_of(0).encode("utf-8", "surrogateescape") == key


@pytest.mark.parametrize("side", [4, 60])
def test_records_that_are_no_images_are_left_out_and_counted(folder: Path, side: int) -> None:
    records = {b"%d.png" % i: picture(i, side=side) for i in range(20)}
    extra = {b"__keys__": b"k" * 9000, b"__len__": b"20", b"meta_info": b"{}", b"zz": b"note"}
    images = opened(save(folder / "i.lmdb", {**records, **extra}))
    assert sorted(images.paths()) == sorted(key.decode() for key in records)
    assert "4 other records" in images.kind


def test_a_database_of_texts_is_not_taken_for_images(folder: Path) -> None:
    texts = {b"%d" % i: b"a line of text" for i in range(30)}
    path = save(folder / "t.lmdb", {**texts, b"0": picture(0)})
    assert open_foreign(path) is None
    with pytest.raises(NotADatabase):
        open_images(path)


def test_pixels_in_datums_are_those_that_were_stored(folder: Path) -> None:
    stored = [pixels(i, 20 + i, 33) for i in range(7)]
    records = {b"%08d_x/%d.jpg" % (i, i): datum(one, 2 * i) for i, one in enumerate(stored)}
    images = opened(save(folder / "caffe.lmdb", records))
    assert images.classes == tuple(map(str, range(13)))
    assert images.labels().tolist() == [label for _, label in images.fetch(range(7))]
    assert images.labels().tolist() == [0, 2, 4, 6, 8, 10, 12]
    for one, expected in zip(images.fetch(range(7)), stored, strict=True):
        assert np.array_equal(np.asarray(Image.open(BytesIO(one.data))), expected)


def test_grey_pixels_in_datums(folder: Path) -> None:
    digit = pixels(0, 28, 31)[:, :, 0]
    message = Datum(channels=1, height=28, width=31, data=digit.tobytes(), label=5)
    images = opened(save(folder / "mnist.lmdb", {b"0": message.SerializeToString()}))
    assert np.array_equal(np.asarray(Image.open(BytesIO(images.fetch([0])[0].data))), digit)
    assert images.label_of(0) == 5


def test_image_files_in_datums(folder: Path) -> None:
    files = [picture(i, "JPEG") for i in range(4)]
    records = {
        b"%d" % i: Datum(data=file, label=i, encoded=True).SerializeToString()
        for i, file in enumerate(files)
    }
    images = opened(save(folder / "i.lmdb", {**records, b"__about__": b"made in 2015"}))
    assert [one.data for one in images.fetch(range(4))] == files
    assert images.kind == "Caffe's Datum (1 other record left out)"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Datum(channels=2, height=1, width=1, float_data=[0.5, 1.5], label=1), "floating-point"),
        (Datum(channels=4, height=1, width=2, data=b"12345678", label=1), "4 channels"),
        (Datum(data=b"\xff\xd8\xff", encoded=True, label=1 << 40), "label 1099511627776"),
        (Datum(data=b"\xff\xd8\xff", encoded=True, label=-1), "no class"),
    ],
)
def test_datums_that_are_no_labelled_images_are_refused(
    folder: Path, message: Any, words: str
) -> None:
    path = save(folder / "i.lmdb", {b"0": message.SerializeToString()})
    with pytest.raises(NotADatabase, match=words):
        open_foreign(path)


def test_a_datum_of_the_wrong_size_is_damage(folder: Path) -> None:
    records = {b"0": datum(pixels(0), 0), b"1": datum(pixels(1), 1)}
    records[b"1"] = Datum(channels=3, height=9, width=9, data=b"short", label=1).SerializeToString()
    images = opened(save(folder / "i.lmdb", records))
    assert len(images.fetch([0])) == 1
    with pytest.raises(DamagedDatabase, match="'1'"):
        images.fetch([1])


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return (self.trace.write_text, ("it ran",))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_are_refused_and_never_run(folder: Path, protocol: int) -> None:
    trace = folder / "trace"
    values = {
        b"%d" % i: pickle.dumps((picture(i), i, Bomb(trace)), protocol=protocol) for i in range(5)
    }
    counts = {b"__len__": pickle.dumps(5), b"__keys__": pickle.dumps(list(values))}
    path = save(folder / "i.lmdb", {**values, **counts})
    with pytest.raises(NotADatabase, match="pickles") as caught:
        open_images(path)
    assert "ptools pack-lmdb" in (caught.value.hint or "")
    assert not trace.exists()
    pickle.loads(values[b"0"])
    assert trace.exists()  # it would have been run


def test_serialised_arrow_objects_count_as_pickles(folder: Path) -> None:
    values = {b"%d" % i: b"\1\0\0\0" * 30 for i in range(5)}
    with pytest.raises(NotADatabase, match="pickles"):
        open_foreign(save(folder / "i.lmdb", {**values, b"__keys__": b"\2\0\0\0"}))


def ours(path: Path, count: int) -> Path:
    return write_shard(path, ((picture(i), f"a/{i}.png", 0) for i in range(count)), ["a"])


def test_a_set_of_ours_is_not_taken_for_a_foreign_one(folder: Path) -> None:
    assert open_foreign(ours(folder / "i.mdb", 5)) is None


def test_a_set_of_ours_with_a_broken_record_is_not_taken_for_a_foreign_one(folder: Path) -> None:
    path = ours(folder / "i.mdb", 5)
    path.write_bytes(path.read_bytes().replace(b"ptoolsIM", b"ptoolsIX"))
    assert open_foreign(path) is None
    with pytest.raises(NotADatabase, match="no metadata record"):
        open_images(path)


def test_a_set_of_ours_without_its_record_is_not_taken_for_a_foreign_one(folder: Path) -> None:
    path = ours(folder / "i.mdb", 5)
    records = truth(path, subdir=False)
    del records[b"\xffmeta"]
    assert len(records) == 5
    assert open_foreign(save(folder / "cut.mdb", records, subdir=False)) is None


@pytest.mark.parametrize("name", [".data.mdb.1f.part", "i.lmdb.part/data.mdb"])
def test_what_is_being_packed_is_not_taken_for_a_foreign_one(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    assert open_foreign(save(path, {b"a.png": picture(0)}, subdir=False)) is None


def test_what_is_no_database_is_none_or_an_error(folder: Path) -> None:
    assert open_foreign(folder / "missing") is None
    assert open_foreign(folder) is None
    assert open_foreign(save(folder / "empty.lmdb", {})) is None
    (folder / "i.mdb").write_bytes(picture(0))
    with pytest.raises(NotADatabase):
        open_foreign(folder / "i.mdb")


def test_a_file_that_is_cut_short_while_open_is_damage(folder: Path) -> None:
    path = save(folder / "i.lmdb", {b"%d" % i: picture(i) for i in range(9)})
    images = opened(path)
    with (path / "data.mdb").open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(DamagedDatabase, match="cut short"):
        images.fetch(range(9))


def test_copies_read_the_same(folder: Path) -> None:
    images = opened(save(folder / "i.lmdb", {b"%d" % i: picture(i) for i in range(9)}))
    twin = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 500
    assert twin.fetch([3, 1]) == images.fetch([3, 1]) == copy.copy(images).fetch([3, 1])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_dataset_reads_foreign_databases_in_workers(folder: Path, start: str) -> None:
    torch = pytest.importorskip("torch")
    from ptools.image_lmdb.dataset import LMDBImageFolder

    stored = [pixels(i) for i in range(8)]
    records = {b"%d" % i: datum(one, i % 3) for i, one in enumerate(stored)}
    dataset = LMDBImageFolder(save(folder / "i.lmdb", records), loader="array")
    assert dataset.classes == ["0", "1", "2"]
    assert dataset.targets == [i % 3 for i in range(8)]
    assert dataset.samples[7] == ("7", 1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=1, multiprocessing_context=start
    )
    images = np.concatenate([batch.numpy() for batch, _ in loader])
    assert np.array_equal(images, np.stack(stored))


def _all_of(path: Path) -> None:
    """Do with a database what can be done with it."""
    images = open_foreign(path)
    if images is not None:
        list(images.paths())
        for index in range(len(images)):
            images.fetch([index])


def _broken(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        # The pages of the tree are where a change is felt.
        at = chance.randrange(min(len(data), chance.choice((256, 20_000, len(data)))))
        changed[at] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    return bytes(changed)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    folder = tmp_path_factory.mktemp("databases")
    kinds: list[Records] = [
        {b"c/%d" % i: picture(i, side=8 * i + 4) for i in range(8)},
        {b"%d" % i: datum(pixels(i, 5 * i + 3, 9), i) for i in range(8)},
        {b"%d" % i: pickle.dumps((picture(i), i)) for i in range(8)},
    ]
    files = [save(folder / str(i), records) for i, records in enumerate(kinds)]
    yield [(file / "data.mdb").read_bytes() for file in files]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_databases_only_raise_errors_of_ours(
    folder: Path, databases: list[bytes], seed: int
) -> None:
    chance = random.Random(seed)
    outcomes = set()
    for turn in range(150):
        path = folder / f"{turn}.mdb"
        path.write_bytes(_broken(databases[seed], chance))
        try:
            _all_of(path)
        except PtoolsError as error:
            outcomes.add(type(error))
        else:
            outcomes.add(None)
        path.unlink()
    assert DamagedDatabase in outcomes


def test_hostile_datums_are_none_or_what_protobuf_reads(folder: Path) -> None:
    chance = random.Random(0)
    whole = datum(pixels(0, 3, 5), 7)
    understood = 0
    for _ in range(3000):
        data = _broken(whole, chance)
        found = read_datum(lambda start, count, data=data: data[start : start + count], len(data))
        image_in(data)
        if found is None or found.floats:
            continue
        expected = Datum.FromString(data)
        understood += 1
        assert data[found.at : found.at + found.length] == expected.data
        numbers = (expected.channels, expected.height, expected.width, expected.label)
        assert found[:4] == tuple(number & (1 << 64) - 1 for number in numbers)
        assert bool(found.encoded) == expected.encoded
    assert understood > 300


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 50,
        b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x01" * 1_000_000,
        b"\x22\x00" * 1_000_000,
        b"\x0d\x00\x00\x00\x00",
    ],
)
def test_hostile_messages_are_no_datums(data: bytes) -> None:
    assert read_datum(lambda start, count: data[start : start + count], len(data)) is None

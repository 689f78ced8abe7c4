"""Sets that come to be in a remote store."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.packing import finished
from ptools.image_lmdb.remote import RemoteStore

fsspec = pytest.importorskip("fsspec")

Images = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
Expected = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A server that speaks S3."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.slow)])
def place(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An URL below which there is nothing yet, in each of several kinds of stores."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    name = f"ptools-{uuid.uuid4().hex}"
    if request.param == "s3":
        address = request.getfixturevalue("server")
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(key, "none")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}/sets/a.lmdb"
    elif request.param == "memory":
        yield f"memory://{name}/a.lmdb"
    else:
        yield f"file://{folder}/{name}/a.lmdb"


def fetched(url: str) -> dict[str, bytes]:
    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    names = files.find(path) if files.exists(path) else []
    return {Path(name).name: files.cat_file(name) for name in names}


def workspaces(folder: Path) -> list[Path]:
    return list(folder.glob("ptools-lmdb-*"))


@pytest.mark.parametrize("shard_size", [0, 1])
def test_a_remote_set_is_that_of_a_local_run(
    shard_size: int, place: str, images: Images, expected: Expected, folder: Path
) -> None:
    source = images(each=2)
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    report = pack_lmdb(source, place, shard_size=shard_size)
    assert report.output == place
    assert fetched(place) == expected(source, shard_size=shard_size)
    assert not workspaces(folder)
    for name, data in fetched(place).items():
        path = folder / "copy.lmdb" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    database = Database("copy.lmdb")
    assert [one.data for one in database.fetch(range(5))] == [
        (source / path).read_bytes() for path in database.paths()
    ][:5]


def test_the_metadata_comes_last(
    place: str, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def record(method: Callable[..., None]) -> Callable[..., None]:
        def call(store: RemoteStore, name: str, content: object) -> None:
            order.append(name)
            method(store, name, content)

        return call

    monkeypatch.setattr(RemoteStore, "put", record(RemoteStore.put))
    monkeypatch.setattr(RemoteStore, "write", record(RemoteStore.write))
    source = images(each=1)
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    pack_lmdb(source, place, shard_size=1)
    shards = [f"data-{number:05d}.mdb" for number in range(4)]
    assert order == [
        *(name for shard in shards for name in (shard, f"{shard}.done")),
        "skipped.jsonl",
        "meta.json",
    ]


def break_uploads(monkeypatch: pytest.MonkeyPatch, place: str, after: int, error: object) -> None:
    """Let the first few uploads through, then fail, or cut short what is uploaded."""
    kind = type(fsspec.core.url_to_fs(place)[0])
    put = kind.put_file
    count = iter(range(1000))

    def put_file(self: Any, local: str, remote: str, **options: Any) -> None:
        if next(count) < after:
            put(self, local, remote, **options)
        elif isinstance(error, BaseException):
            raise error
        else:
            self.pipe_file(remote, Path(local).read_bytes()[:-1])

    monkeypatch.setattr(kind, "put_file", put_file)


@pytest.mark.parametrize("error", [OSError("connection reset"), KeyboardInterrupt(), "cut short"])
def test_an_upload_that_fails_is_one_error_and_the_rest_comes_later(
    error: object, place: str, images: Images, expected: Expected, folder: Path
) -> None:
    source = images()
    with pytest.MonkeyPatch.context() as patch:
        break_uploads(patch, place, after=7, error=error)
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PtoolsError
        with pytest.raises(kind) as caught:
            pack_lmdb(source, place, shard_size=1)
    if isinstance(caught.value, PtoolsError):
        assert place in caught.value.message
        assert caught.value.hint
    assert "meta.json" not in fetched(place)
    assert not workspaces(folder) or not list(workspaces(folder)[0].glob(".*"))
    report = pack_lmdb(source, place, shard_size=1)
    assert report.shards_kept == 7
    assert fetched(place) == expected(source, shard_size=1)


def test_a_shard_that_was_cut_short_later_is_made_again(
    place: str, images: Images, planned: Any
) -> None:
    plan, store = planned(images(), output=place)
    from ptools.image_lmdb.packing import pack_shard

    pack_shard(plan, 0, store)
    assert finished(plan, 0, store) is not None
    files, path = fsspec.core.url_to_fs(place, use_listings_cache=False)
    whole = fetched(place)["data.mdb"]
    files.pipe_file(f"{path}/data.mdb", whole[:-100])
    assert finished(plan, 0, store) is None
    pack_shard(plan, 0, store)
    assert fetched(place)["data.mdb"] == whole
    files.pipe_file(f"{path}/data.mdb.done", b'{"file": ')
    assert finished(plan, 0, store) is None


def test_a_remote_set_is_only_replaced_if_asked(
    place: str, images: Images, expected: Expected
) -> None:
    source = images()
    pack_lmdb(source, place, shard_size=1)
    before = fetched(place)
    with pytest.raises(UsageError, match="already exists"):
        pack_lmdb(source, place)
    assert fetched(place) == before
    pack_lmdb(source, place, force=True)
    assert fetched(place) == expected(source)


@pytest.mark.parametrize("name", ["data.csv", "dataset.tar", ".notes.tmp", "set", "a/data.mdb"])
def test_a_remote_folder_with_other_files_is_left_alone(
    name: str, place: str, images: Images
) -> None:
    files, path = fsspec.core.url_to_fs(place)
    files.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
    files.pipe_file(f"{path}/{name}", b"mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="did not write"):
            pack_lmdb(images(), place, force=force)
    assert fetched(place) == {Path(name).name: b"mine"}


def test_a_second_packer_of_the_same_url_is_refused(place: str, images: Images) -> None:
    source, seen = images(), []

    def pack_again(_: object) -> None:
        if not seen:
            with pytest.raises(PtoolsError, match="by another process") as caught:
                pack_lmdb(source, place)
            seen.append(caught.value)

    pack_lmdb(source, place, progress=pack_again)
    assert seen


def test_parts_meet_in_a_remote_store(
    place: str, images: Images, expected: Expected, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images()
    for number in (2, 0, 1):
        machine = folder / f"machine {number}"
        machine.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(machine))
        report = pack_lmdb(source, place, shard_size=1, part=f"{number}/3")
        assert report.complete == (number == 1)
    assert fetched(place) == expected(source, shard_size=1)
    with pytest.raises(UsageError, match="already exists"):
        pack_lmdb(source, place, shard_size=1, part="0/3")


def test_parts_replace_a_remote_set(place: str, images: Images, expected: Expected) -> None:
    source = images()
    pack_lmdb(source, place)
    pack_lmdb(source, place, shard_size=1, part="0/2", force=True)
    assert "meta.json" not in fetched(place)  # its shards are about to be replaced
    pack_lmdb(source, place, shard_size=1, part="1/2", force=True)
    files = fetched(place)
    listed = {one["file"] for one in json.loads(files["meta.json"])["shards"]}
    whole = expected(source, shard_size=1)
    assert {name: files[name] for name in listed | {"meta.json"}} == whole


def test_jobs_write_to_a_remote_store(place: str, images: Images, expected: Expected) -> None:
    if place.startswith("memory:"):
        pytest.skip("is within one process")
    source = images(each=1)
    pack_lmdb(source, place, shard_size=1, jobs=2)
    assert fetched(place) == expected(source, shard_size=1)


@pytest.mark.parametrize("url", ["nothing://x/y", "s3://", "http://127.0.0.1:1/x.lmdb"])
def test_an_url_that_leads_nowhere_is_told_in_a_sentence(
    url: str, images: Images, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(PtoolsError) as caught:
        pack_lmdb(images(), url)
    assert caught.value.hint

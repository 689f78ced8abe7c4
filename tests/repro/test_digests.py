"""The digests see what weaker hashes miss, on the CPU and by the sum that a device computes."""

import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import pytest
import torch

from ptools.repro.recording import digests
from ptools.repro.recording.digests import Digester, _on_device

if sys.byteorder != "little":
    pytest.skip("the bytes are written here as little-endian", allow_module_level=True)

Digest = Callable[[torch.Tensor], int]
WAYS = [pytest.param(lambda x: Digester().of(x), id="cpu"), pytest.param(_on_device, id="device")]
both = pytest.mark.parametrize("digest", WAYS)


def batch() -> torch.Tensor:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(3))


@both
def test_a_permuted_batch_is_another(digest: Digest) -> None:
    x = batch()
    assert digest(x) == digest(x.clone())
    assert digest(x) != digest(x.roll(1, 0).contiguous())
    assert digest(x) != digest(x.flip(0).contiguous())
    assert digest(x) != digest(x.t().contiguous())


@both
def test_each_exchange_of_two_rows_is_another(digest: Digest) -> None:
    x = batch()
    seen = {digest(x)}
    for first, second in combinations(range(len(x)), 2):
        swapped = x.clone()
        swapped[[first, second]] = x[[second, first]]
        seen.add(digest(swapped))
    assert len(seen) == 1 + 12 * 11 // 2


@both
def test_signs_are_seen(digest: Digest) -> None:
    x = batch()
    assert digest(x) != digest(-x)
    assert digest(torch.zeros(3)) != digest(-torch.zeros(3))
    flipped = x.clone()
    flipped[7, 2] *= -1
    assert digest(x) != digest(flipped)


@both
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.uint8])
def test_zeros_are_not_pairs_that_cancel(digest: Digest, dtype: torch.dtype) -> None:
    rows = [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]]
    assert len({digest(torch.tensor(row, dtype=dtype)) for row in rows}) == len(rows)


@both
def test_lengths_of_zeros_are_told_apart(digest: Digest) -> None:
    assert len({digest(torch.zeros(n, dtype=torch.uint8)) for n in range(40)}) == 40


@both
def test_each_bit_of_a_nan_counts(digest: Digest) -> None:
    payloads = [0x7FC00000, 0x7FC00001, 0x7FC00100, -0x400000, 0x7F800000]
    words = [torch.tensor([1, one, 2], dtype=torch.int32) for one in payloads]
    assert len({digest(one.view(torch.float32)) for one in words}) == len(payloads)


@both
@pytest.mark.parametrize("size", [1, 3, 4, 5, 15, 16, 17, 63])
def test_each_bit_of_each_byte_counts(digest: Digest, size: int) -> None:
    x = torch.arange(size, dtype=torch.uint8) * 37
    seen = {digest(x)}
    for place in range(size):
        for bit in range(8):
            changed = x.clone()
            changed[place] ^= 1 << bit
            seen.add(digest(changed))
    assert len(seen) == 1 + 8 * size


def test_the_digest_on_the_cpu_is_the_crc_of_the_bytes() -> None:
    x = batch()
    assert Digester().of(x) == zlib.crc32(x.numpy().tobytes())
    assert Digester().of(x.t()) == zlib.crc32(x.t().contiguous().numpy().tobytes())
    first = zlib.crc32(x.numpy().tobytes())
    assert Digester().of_all([x, x[:2]]) == zlib.crc32(x[:2].numpy().tobytes(), first)


def test_the_bytes_that_were_read_are_counted() -> None:
    digester = Digester()
    digester.of(torch.zeros(10, 3))
    digester.of(torch.zeros(7, dtype=torch.int64))
    assert digester.nbytes == 120 + 56


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to_sparse_csc(),
        lambda x: torch.complex(x, x + 1),
        lambda x: torch.complex(x, x + 1).conj(),
        lambda x: torch.complex(x, x + 1).conj().imag,
        lambda x: x.to(torch.bfloat16),
        lambda x: x > 0,
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.strided),
        lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
        lambda x: x.expand(2, 12, 5),
        lambda x: x[::2, 1:],
    ],
)
def test_other_numbers_have_another_digest_in_each_layout(
    make: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    x = batch()
    changed = x.clone()
    changed[4, 3] += 1
    changed[0, 1] *= -1
    assert Digester().of(make(x)) == Digester().of(make(x.clone()))
    assert Digester().of(make(x)) != Digester().of(make(changed))


def test_the_samples_of_a_batch_have_digests_of_their_own() -> None:
    x = batch()
    changed = x.clone()
    changed[7] = 0
    pairs = zip(Digester().samples(x), Digester().samples(changed), strict=True)
    assert [index for index, (one, other) in enumerate(pairs) if one != other] == [7]


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(digests, "_CHUNK", 64)
    digests._weights.cache_clear()
    yield
    digests._weights.cache_clear()


@pytest.mark.parametrize("rest", range(8))
@pytest.mark.usefixtures("short_chunks")
def test_chunks_and_rests_count_by_their_place(rest: int) -> None:
    x = torch.zeros(3 * 256 + rest, dtype=torch.uint8)
    seen = {_on_device(x)}
    for place in range(len(x)):
        changed = x.clone()
        changed[place] = 1
        seen.add(_on_device(changed))
    assert len(seen) == 1 + len(x)


@pytest.mark.usefixtures("short_chunks")
def test_an_exchange_of_chunks_is_seen() -> None:
    parts = batch().repeat(20, 1).view(-1)[: 64 * 6].clone().view(6, 64)
    parts += torch.arange(6)[:, None]
    seen = {_on_device(parts)}
    for first, second in pairwise(range(6)):
        swapped = parts.clone()
        swapped[[first, second]] = parts[[second, first]]
        seen.add(_on_device(swapped))
    assert len(seen) == 6


def test_a_tensor_longer_than_a_chunk_is_read_to_its_end() -> None:
    x = torch.zeros(digests._CHUNK + 5, dtype=torch.int32)
    before = _on_device(x)
    x[-1] = 1
    last = _on_device(x)
    x[-1], x[digests._CHUNK - 1] = 0, 1
    assert len({before, last, _on_device(x)}) == 3


@pytest.mark.parametrize("offset", range(1, 8))
def test_the_digest_is_of_the_numbers_and_not_of_where_they_lie(offset: int) -> None:
    whole = torch.arange(200, dtype=torch.uint8)
    part = whole[offset : offset + 150]
    assert _on_device(part) == _on_device(part.clone())
    assert Digester().of(part) == Digester().of(part.clone())


@pytest.mark.gpu
def test_the_sum_on_a_device_is_that_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for x in batch(), batch().half(), torch.arange(1003, dtype=torch.uint8), batch() > 0:
        assert _on_device(x.cuda()) == _on_device(x)
        expected = zlib.crc32(_on_device(x).to_bytes(8, "little", signed=True))
        assert Digester().of(x.cuda()) == expected

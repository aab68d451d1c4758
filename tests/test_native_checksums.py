"""CRC32C: against an independent implementation, in parts, of files, and compared while loading."""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm import _native

CHUNK = 100_000  # on purpose no multiple of a page


@given(st.binary(max_size=20_000))
def test_equals_another_implementation(data: bytes) -> None:
    assert _native.crc32c(data) == google_crc32c.value(data)


@given(st.binary(min_size=1), st.integers(1, 400), st.integers(0, 9))
@settings(deadline=None)
def test_long_and_unaligned_buffers(seed: bytes, repeat: int, start: int) -> None:
    data = (seed * 200)[:50_000] * repeat
    view = memoryview(data)[min(start, len(data)) :]
    assert _native.crc32c(view) == google_crc32c.value(bytes(view))


@given(st.binary(), st.binary())
def test_continues_and_combines(first: bytes, second: bytes) -> None:
    whole = google_crc32c.value(first + second)
    assert _native.crc32c(second, _native.crc32c(first)) == whole
    combined = _native.crc32c_combine(_native.crc32c(first), _native.crc32c(second), len(second))
    assert combined == whole


def test_takes_any_contiguous_buffer() -> None:
    data = bytearray(os.urandom(100))
    expected = google_crc32c.value(bytes(data))
    assert _native.crc32c(data) == _native.crc32c(memoryview(data)) == expected
    with pytest.raises(BufferError):
        _native.crc32c(memoryview(data)[::2])
    with pytest.raises(TypeError):
        _native.crc32c("text")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[int]]:
    data = os.urandom(1_234_567)
    path = tmp_path_factory.mktemp("native") / "sample.bin"
    path.write_bytes(data)
    sums = [google_crc32c.value(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    return path, data, sums


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_of_files(sample: tuple[Path, bytes, list[int]], tmp_path: Path, threads: int) -> None:
    path, _, sums = sample
    assert _native.crc32c_file(str(path), CHUNK, threads) == sums
    empty = tmp_path / "empty"
    empty.touch()
    assert _native.crc32c_file(str(empty), CHUNK, threads) == []


def test_of_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _native.crc32c_file(str(tmp_path / "missing"), CHUNK)
    with pytest.raises(IsADirectoryError):
        _native.crc32c_file(str(tmp_path), CHUNK)
    with pytest.raises(ValueError, match="chunk size"):
        _native.crc32c_file(__file__, 0)


def load(path: Path, size: int, sums: list[int], extents: list[tuple[int, int]], method: str):
    request = _native.FileRequest(
        str(path), size, extents, method=method, chunk_size=CHUNK, crc32c=sums, verify="always"
    )
    job = _native.LoadJob([request], block_size=65536)
    job.start()
    return job


METHODS = ("auto", "map", "uring", "direct", "buffered")


def skip_unless_usable(path: Path, method: str) -> None:
    probe = _native.probe(str(path))
    if (method in ("uring", "direct") and not probe["direct"]) or (
        method == "uring" and not probe["uring"]
    ):
        pytest.skip(f"{method} does not work on this file system")


@pytest.mark.parametrize("method", METHODS)
def test_good_bytes_pass(sample: tuple[Path, bytes, list[int]], method: str) -> None:
    path, data, sums = sample
    skip_unless_usable(path, method)
    job = load(path, len(data), sums, [(0, len(data))], method)
    assert job.wait()
    assert bytes(memoryview(job.region(0))) == data
    assert job.stats()[0].verified


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 7 * CHUNK + 77, 1_234_566])
def test_a_flipped_bit_is_found(
    sample: tuple[Path, bytes, list[int]], tmp_path: Path, method: str, at: int
) -> None:
    _, data, sums = sample
    bad = bytearray(data)
    bad[at] ^= 4
    path = tmp_path / "bad.bin"
    path.write_bytes(bad)
    skip_unless_usable(path, method)
    job = load(path, len(data), sums, [(0, len(data))], method)
    with pytest.raises(_native.ChecksumMismatch) as caught:
        job.wait()
    chunk = at // CHUNK
    actual = google_crc32c.value(bytes(bad[chunk * CHUNK : (chunk + 1) * CHUNK]))
    assert caught.value.args == (str(path), chunk, chunk * CHUNK, sums[chunk], actual)
    with pytest.raises(_native.ChecksumMismatch):
        job.wait_range(0, at, at + 1)
    assert not job.stats()[0].verified


def test_only_chunks_read_in_full_count(sample: tuple[Path, bytes, list[int]]) -> None:
    path, data, sums = sample
    wrong = [value ^ 1 for value in sums]
    wrong[3] = sums[3]
    job = load(path, len(data), wrong, [(3 * CHUNK, CHUNK)], "buffered")
    assert job.wait()
    assert not job.stats()[0].verified  # pages of the neighbours came along, uncompared


def test_checksums_must_fit_the_file(sample: tuple[Path, bytes, list[int]]) -> None:
    path, data, sums = sample
    with pytest.raises(ValueError, match="checksums for"):
        load(path, len(data), sums[1:], [(0, len(data))], "auto")
    with pytest.raises(ValueError, match="chunk size"):
        _native.FileRequest(str(path), len(data), [], crc32c=sums, verify="always")

"""The native loader delivers the file's bytes: every method, size and choice of ranges."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sllm import _native

BLOCK = 64 << 10
METHODS = ("auto", "map", "uring", "direct", "buffered")


def usable_methods(path: Path) -> tuple[str, ...]:
    probe = _native.probe(str(path))
    skip = set()
    if not probe["direct"]:
        skip |= {"direct", "uring"}
    if not probe["uring"]:
        skip |= {"uring"}
    return tuple(method for method in METHODS if method not in skip)


def write(path: Path, data: bytes) -> Path:
    """Written back, so that `evict` can drop it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def read(path: Path, extents: list[tuple[int, int]], size: int, method: str, **options: object):
    request = _native.FileRequest(str(path), size, extents, method=method)
    job = _native.LoadJob([request], threads=3, queue_depth=6, block_size=BLOCK, **options)
    job.start()
    assert job.wait(timeout=120)
    return job


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    data = os.urandom(5_000_003)
    return write(tmp_path_factory.mktemp("native") / "sample.bin", data), data


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(
    "size",
    [0, 1, 511, 512, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + 4097, 9_000_001],
)
def test_whole_files(tmp_path: Path, method: str, size: int, cold: bool) -> None:
    data = os.urandom(size)
    path = write(tmp_path / "data.bin", data)
    if method not in usable_methods(path):
        pytest.skip(f"{method} does not work on this file system")
    if cold:
        _native.evict(str(path))
    job = read(path, [(0, size)], size, method)
    region = job.region(0)
    assert region.nbytes == size
    assert bytes(memoryview(region)) == data
    stats = job.stats()[0]
    assert stats.nbytes == size
    assert method in ("auto", stats.method)
    assert 0 <= stats.started <= stats.finished
    assert job.progress() == (size, size)


@st.composite
def extents(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=12)))
    if len(cuts) % 2:
        cuts.pop()
    pairs = iter(cuts)
    return [(begin, end - begin) for begin, end in zip(pairs, pairs, strict=True)]


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_ranges(sample: tuple[Path, bytes], method: str, data: st.DataObject) -> None:
    path, content = sample
    if method not in usable_methods(path):
        pytest.skip(f"{method} does not work on this file system")
    ranges = data.draw(extents(len(content)))
    if data.draw(st.booleans()):
        _native.evict(str(path))
    job = read(path, ranges, len(content), method)
    view = memoryview(job.region(0))
    for offset, length in ranges:
        job.wait_range(0, offset, offset + length)
        assert view[offset : offset + length] == content[offset : offset + length]


@pytest.mark.parametrize("method", METHODS)
def test_offsets_beyond_32_bits(tmp_path: Path, method: str) -> None:
    path = tmp_path / "sparse.bin"
    size = (5 << 30) + 123
    places = {0: b"start", (4 << 30) - 3: b"across 4 GiB", size - 4: b"last"}
    with path.open("wb") as file:
        file.truncate(size)
        for offset, text in places.items():
            file.seek(offset)
            file.write(text)
    if method not in usable_methods(path):
        pytest.skip(f"{method} does not work on this file system")
    ranges = [(offset, len(text)) for offset, text in places.items()]
    job = read(path, ranges, size, method)
    view = memoryview(job.region(0))
    for offset, text in places.items():
        assert view[offset : offset + len(text)] == text
    assert job.progress()[0] <= 4 * 4096  # and not 5 GiB


def test_partly_cached_files_come_from_both_places(tmp_path: Path) -> None:
    data = os.urandom((16 << 20) + 5)
    path = write(tmp_path / "data.bin", data)
    if "uring" not in usable_methods(path):
        pytest.skip("no direct reads on this file system")
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 12 << 20, os.POSIX_FADV_DONTNEED)
    assert 0.1 < _native.residency(str(path)) < 0.5
    job = read(path, [(0, len(data))], len(data), "auto")
    assert bytes(memoryview(job.region(0))) == data
    stats = job.stats()[0]
    assert stats.method in ("uring", "direct")
    assert "in the page cache" in stats.reason


def test_a_cached_file_is_mapped_and_a_cold_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "data.bin", os.urandom(1 << 20))
    assert read(path, [(0, 1 << 20)], 1 << 20, "auto").stats()[0].method == "map"
    if "direct" not in usable_methods(path):
        pytest.skip("no direct reads on this file system")
    _native.evict(str(path))
    assert _native.residency(str(path)) == 0
    stats = read(path, [(0, 1 << 20)], 1 << 20, "auto").stats()[0]
    assert stats.method in ("uring", "direct")
    assert stats.resident == 0


def test_a_mapping_is_private(sample: tuple[Path, bytes]) -> None:
    path, content = sample
    region = read(path, [], len(content), "map").region(0)
    assert region.kind == "map"
    view = memoryview(region)
    assert view == content
    view[0] = view[0] ^ 1
    assert path.read_bytes() == content


@pytest.fixture
def memory_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK):
        pytest.skip("no /dev/shm")
    path = base / f"sllm-test-{os.getpid()}.bin"
    yield path
    path.unlink(missing_ok=True)


def test_a_file_on_tmpfs(memory_directory: Path) -> None:
    data = os.urandom(3 * BLOCK + 1)
    path = write(memory_directory, data)
    if _native.probe(str(path))["file_system"] != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs")
    for method in usable_methods(path):
        job = read(path, [(0, len(data))], len(data), method)
        assert bytes(memoryview(job.region(0))) == data
    assert read(path, [(0, len(data))], len(data), "auto").stats()[0].method == "map"


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"weight\xff.bin")
    write(path, b"12345")
    assert bytes(memoryview(read(path, [(0, 5)], 5, "auto").region(0))) == b"12345"
    request = _native.FileRequest(str(path), 6, [(0, 6)])
    job = _native.LoadJob([request])
    job.start()
    with pytest.raises(OSError) as caught:
        job.wait()
    assert caught.value.filename == str(path)


def test_several_threads_of_python_load_at_once(sample: tuple[Path, bytes]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path, content = sample
    pool = _native.RegionPool(64 << 20)

    def load(method: str) -> bool:
        job = read(path, [(0, len(content))], len(content), method, pool=pool)
        return bytes(memoryview(job.region(0))) == content

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(load, usable_methods(path) * 4))

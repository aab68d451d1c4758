"""Waiting, cancelling, failing and cleaning up: nothing hangs, nothing leaks."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import threading
from pathlib import Path

import pytest

from sllm import _native

MEGA = 1 << 20


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    data = os.urandom(6 * MEGA + 7)
    path = tmp_path_factory.mktemp("native") / "sample.bin"
    path.write_bytes(data)
    return path, data


def request(path: Path, size: int, method: str = "buffered") -> _native.FileRequest:
    return _native.FileRequest(str(path), size, [(0, size)], method=method)


def stuck_job(sample: tuple[Path, bytes]) -> _native.LoadJob:
    """A job whose second file never gets its turn."""
    path, data = sample
    files = [request(path, len(data)), request(path, len(data))]
    job = _native.LoadJob(files, prefetch_files=1)
    job.start()
    return job


def test_ranges_arrive_and_stay(sample: tuple[Path, bytes]) -> None:
    path, data = sample
    job = _native.LoadJob([request(path, len(data))] * 3, block_size=MEGA)
    job.start()
    for file in range(3):
        view = memoryview(job.region(file))
        for begin in range(0, len(data), MEGA):
            end = min(begin + MEGA, len(data))
            job.wait_range(file, begin, end)
            assert view[begin:end] == data[begin:end]
    assert job.wait()
    assert job.wait()
    job.wait_range(0, 0, len(data))


def test_files_wait_for_their_turn(sample: tuple[Path, bytes]) -> None:
    job = stuck_job(sample)
    size = len(sample[1])
    job.wait_range(0, 0, size)
    assert job.wait(timeout=0) is False
    assert job.progress() == (size, 2 * size)
    assert [stats.method for stats in job.stats()] == ["buffered", ""]
    region = job.region(0)
    job.release(0)
    assert job.wait()
    assert bytes(memoryview(region)) == bytes(memoryview(job.region(1))) == sample[1]
    with pytest.raises(RuntimeError, match="released"):
        job.region(0)


def test_wrong_use_is_told(sample: tuple[Path, bytes]) -> None:
    path, data = sample
    job = _native.LoadJob([request(path, len(data))])
    with pytest.raises(RuntimeError, match="not started"):
        job.wait()
    with pytest.raises(RuntimeError, match="not started"):
        job.region(0)
    job.start()
    with pytest.raises(RuntimeError, match="already"):
        job.start()
    with pytest.raises(IndexError):
        job.region(1)
    with pytest.raises(ValueError, match="not within"):
        job.wait_range(0, 0, len(data) + 1)


@pytest.mark.parametrize("wait", ["wait", "wait_range", "region"])
def test_cancel_wakes_whoever_waits(sample: tuple[Path, bytes], wait: str) -> None:
    job = stuck_job(sample)
    calls = {
        "wait": job.wait,
        "wait_range": lambda: job.wait_range(1, 0, 10),
        "region": lambda: job.region(1),
    }
    caught: list[BaseException] = []

    def waiter() -> None:
        try:
            calls[wait]()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=waiter)
    thread.start()
    job.cancel()
    job.cancel()
    thread.join()
    assert [type(error) for error in caught] == [_native.Cancelled]
    with pytest.raises(_native.Cancelled):
        job.wait()


def test_cancelling_what_is_done_changes_nothing(sample: tuple[Path, bytes]) -> None:
    path, data = sample
    job = _native.LoadJob([request(path, len(data))])
    job.start()
    assert job.wait()
    job.cancel()
    assert job.wait()
    assert bytes(memoryview(job.region(0))) == data


def test_dropping_a_running_job(sample: tuple[Path, bytes]) -> None:
    path, data = sample
    for method in ("auto", "map", "buffered"):
        for _ in range(10):
            job = _native.LoadJob([request(path, len(data), method)] * 4, block_size=65536)
            job.start()
            region = job.region(0)
            del job
            memoryview(region)[-1] = 1  # outlives the job


def test_ctrl_c_interrupts_a_wait(sample: tuple[Path, bytes]) -> None:
    job = stuck_job(sample)
    assert threading.current_thread() is threading.main_thread()
    interrupt = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        interrupt.start()
        job.wait()
    interrupt.join()
    job.release(0)
    assert job.wait()  # an interrupted wait harms nothing


@pytest.mark.parametrize("method", ["auto", "map", "buffered"])
@pytest.mark.parametrize("difference", [-1, 1, 5000])
def test_a_wrong_size_names_everything(tmp_path: Path, method: str, difference: int) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 10_000)
    job = _native.LoadJob([request(path, 10_000 + difference, method)])
    job.start()
    with pytest.raises(OSError) as caught:
        job.wait()
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == str(path)
    assert "10000 bytes" in str(caught.value)
    assert f"expected {10_000 + difference}" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, error in (
        (tmp_path / "missing", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (fifo, OSError),
        (loop, OSError),
    ):
        job = _native.LoadJob([request(path, 10)])
        job.start()
        with pytest.raises(error) as caught:
            job.wait()
        assert caught.value.filename == str(path)
        with pytest.raises(error):
            job.region(0)
        for function in (_native.residency, _native.evict, _native.probe):
            with pytest.raises(error):
                function(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0)
    job = _native.LoadJob([request(path, 0)])
    job.start()
    with pytest.raises(PermissionError):
        job.wait()


def test_earlier_files_survive_a_later_error(sample: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = sample
    job = _native.LoadJob([request(path, len(data)), request(tmp_path / "missing", 10)])
    job.start()
    # Whether the first file was read before the error struck is chance; what was read stays.
    with contextlib.suppress(FileNotFoundError):
        job.wait_range(0, 0, len(data))
        assert bytes(memoryview(job.region(0))) == data
    with pytest.raises(FileNotFoundError):
        job.wait()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def test_nothing_is_left_behind(sample: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = sample
    missing = tmp_path / "missing"

    def load_all(times: int) -> None:
        for method in ("auto", "map", "buffered", "direct", "uring"):
            for _ in range(times):
                job = _native.LoadJob([request(path, len(data), method)] * 2, threads=2)
                job.start()
                with contextlib.suppress(OSError):  # direct and uring, where they do not work
                    job.wait()
                failing = [request(path, len(data), method), request(missing, 1)]
                job = _native.LoadJob(failing, threads=2)
                job.start()
                with pytest.raises(OSError):
                    job.wait()
        gc.collect()

    load_all(1)  # threads leave stacks that the C library keeps for the next ones
    files, memory = descriptors(), address_space()
    load_all(8)
    assert descriptors() == files
    assert address_space() < memory + 2 * len(data)
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_drop_the_job(sample: tuple[Path, bytes]) -> None:
    job = stuck_job(sample)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs; the wait status tells
        del job
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    job.release(0)
    assert job.wait()


def test_build_info() -> None:
    info = _native.build_info()
    assert set(info) == {"uring", "crc32c", "version", "sanitizer"}
    assert info["crc32c"] in ("sse4.2", "armv8", "table")

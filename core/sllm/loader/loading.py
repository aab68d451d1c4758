"""A load under way: tensors can be taken while later bytes are still on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from sllm import _native
from sllm.checkpoint.base import Checkpoint, TensorInfo
from sllm.errors import LoadError, OptionError, SllmError
from sllm.interfaces import Device
from sllm.loader import records
from sllm.loader.base import LoadOptions, LoadRecord, Progress
from sllm.loader.failures import translated
from sllm.loader.plan import FilePlan, Plan
from sllm.loader.tensors import as_bytes, carve, look

if TYPE_CHECKING:
    import torch


def _request(plan: FilePlan, options: LoadOptions) -> _native.FileRequest:
    sums = plan.file.checksums
    return _native.FileRequest(
        str(plan.file.path),
        plan.file.size,
        plan.extents,
        method=options.method,
        chunk_size=sums.chunk_size if sums else 0,
        crc32c=sums.crc32c if sums else (),
        verify=options.verify,
    )


class Loading:
    """One load. Reading starts at once, on native threads, and needs no GIL.

    Use it as a context manager; leaving it early cancels what is still to be read.
    Tensors taken from it stay valid afterwards: each keeps its file's memory alive.

    Attributes:
        checkpoint: what is being read.
        record: what the load did; complete once it is finished.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        model: str,
        source: str,
        device: Device,
        device_name: str = "cpu",
        options: LoadOptions | None = None,
        prefetch_files: int = 0,
        pool: _native.RegionPool | None = None,
    ) -> None:
        options = options or LoadOptions()
        self.checkpoint: Checkpoint = plan.checkpoint
        self.record = LoadRecord(model, device_name, nbytes=plan.nbytes, source=source)
        self._plan = plan
        self._device = device
        self._place_seconds = 0.0
        self._files = {str(file.file.path): file.file for file in plan.files}
        self._index = {
            info.name: (number, info)
            for number, file in enumerate(plan.files)
            for info in file.tensors
        }
        self._data: dict[int, tuple[torch.Tensor, int]] = {}
        self._bounded = prefetch_files > 0
        self._released: set[int] = set()
        self._lock = threading.RLock()
        self._finished = False
        self._started = time.monotonic()
        self._job = _native.LoadJob(
            [_request(file, options) for file in plan.files],
            threads=options.threads,
            queue_depth=options.queue_depth,
            block_size=options.block_size,
            huge_pages=options.huge_pages,
            prefetch_files=prefetch_files,
            pool=pool,
        )
        self._job.start()

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of this load, in file order, views last."""
        stored = (name for name in self._index if name not in self._plan.hidden)
        return (*stored, *self._plan.views)

    def info(self, name: str) -> TensorInfo:
        """Where a stored tensor lies.

        Raises:
            OptionError: the load has no such stored tensor.
        """
        return self._locate(name)[1]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, as soon as its bytes have arrived.

        On the CPU it is a view of its file's memory, private to this process: writing to it
        never reaches the file.

        Raises:
            OptionError: no such tensor.
            LoadError: reading failed.
            ChecksumError: its bytes are damaged.
        """
        view = self._plan.views.get(name)
        if view is not None:
            return look(self.tensor(view.base), view)
        number, info = self._locate(name)
        data, start = self._bytes_of(number, info)
        return carve(data, info, start)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) in file order, each as soon as it is there; then the views.

        With `prefetch_files` a file's memory is given back once its tensors are gone.
        """
        for number, file in enumerate(self._plan.files):
            for info in file.tensors:
                if info.name not in self._plan.hidden:
                    data, start = self._bytes_of(number, info)
                    yield info.name, carve(data, info, start)
            self._forget(number)
        for name in self._plan.views:
            yield name, self.tensor(name)
        self.wait()

    def wait(self, progress: Progress | None = None) -> LoadRecord:
        """Until the last byte is there and checked.

        Raises:
            LoadError: reading failed.
        """
        try:
            with translated(self._files):
                self._let_go(len(self._plan.files))
                while not self._job.wait(None if progress is None else 0.1):
                    if progress is not None:
                        progress(*self._job.progress())
        except BaseException as error:
            self._finish(error)
            raise
        if progress is not None:
            progress(*self._job.progress())
        self._finish(None)
        return self.record

    def progress(self) -> tuple[int, int]:
        """(bytes read, bytes in all)."""
        return self._job.progress()

    def cancel(self) -> None:
        """Stop reading at once; whoever waits gets a LoadCancelledError."""
        self._job.cancel()

    def close(self) -> None:
        """End the load, cancelling what is still to be read. Tensors taken stay valid."""
        if not self._finished and not self._complete():
            self._job.cancel()
            self._finish(LoadError("closed before the end"))
        self._finish(None)
        self._data.clear()

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _locate(self, name: str) -> tuple[int, TensorInfo]:
        try:
            return self._index[name]
        except KeyError:
            raise OptionError(
                f"this load has no tensor {name!r}",
                path=self.checkpoint.directory,
                hint="`sllm inspect --tensors DIR` lists the names",
            ) from None

    def _bytes_of(self, number: int, info: TensorInfo) -> tuple[torch.Tensor, int]:
        """The file's bytes on the device and the file offset they start at, `info` present."""
        try:
            with translated(self._files):
                # Taking a tensor of a later file permits it to be read, or we would wait for ever.
                self._let_go(number)
                if self.record.device == "cpu":
                    if info.nbytes:
                        self._job.wait_range(number, info.offset, info.end)
                    return self._host_bytes(number), 0
                return self._device_bytes(number)
        except BaseException as error:
            self._finish(error)
            raise

    def _host_bytes(self, number: int) -> torch.Tensor:
        with self._lock:
            found = self._data.get(number)
            if found is None:
                if number in self._released:
                    raise LoadError(
                        "this file's tensors were handed out already and its memory given back",
                        path=self._plan.files[number].file.path,
                        hint="take each tensor once, or stream without prefetch_files",
                    )
                region = self._job.region(number)
                found = self._data[number] = (as_bytes(region), 0)
            return found[0]

    def _device_bytes(self, number: int) -> tuple[torch.Tensor, int]:
        with self._lock:
            found = self._data.get(number)
            if found is None:
                plan = self._plan.files[number]
                for offset, length in plan.extents:
                    self._job.wait_range(number, offset, offset + length)
                # The data section of a prepared file starts on a page: starting there keeps
                # tensors as aligned on the device as they are in the file.
                first = min((i.offset for i in plan.tensors), default=plan.file.data_offset)
                last = max((i.end for i in plan.tensors), default=first)
                started = time.monotonic()
                host = self._host_bytes(number)[first:last]
                found = self._device.place(host, self.record.device), first
                self._place_seconds += time.monotonic() - started
                self._data[number] = found
            return found

    def _let_go(self, until: int) -> None:
        """Permit files after `until` to be read, keeping what was read of those before."""
        for number in range(until):
            if number not in self._released:
                self._host_bytes(number)
                self._release(number)

    def _forget(self, number: int) -> None:
        """The consumer has seen this file: bounded loads give its memory back with its tensors."""
        viewed = any(self._index[view.base][0] == number for view in self._plan.views.values())
        if self._bounded and not viewed:
            with self._lock:
                self._data.pop(number, None)
        self._release(number)

    def _release(self, number: int) -> None:
        with self._lock:
            self._released.add(number)
        self._job.release(number)

    def _complete(self) -> bool:
        try:
            with translated(self._files):
                return self._job.wait(0)
        except SllmError as error:
            self._finish(error)
            return True

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            if self._finished:
                return
            self._finished = True
        stats = self._job.stats()
        self.record.seconds = time.monotonic() - self._started
        if error is None and not self._place_seconds:
            # Whoever takes a prefetched read over may come long after its last byte.
            self.record.seconds = max((file.finished for file in stats), default=0.0)
        self.record.files = [
            records.file_record(plan.file.name, measured)
            for plan, measured in zip(self._plan.files, stats, strict=True)
        ]
        self.record.stages = records.stages(stats, self._place_seconds)
        self.record.error = None if error is None else str(error) or type(error).__name__
        records.emit(self.record)

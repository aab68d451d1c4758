"""Gets the memory of a model's parameters ready while their bytes are still being read.

Freshly allocated memory costs a page fault and a zeroed page for every 4 KiB at its first write.
Filling parameters pays for that in the thread that copies, often more than the copy itself; doing
it ahead on another core takes it off the critical path. Transparent huge pages would mean fewer
faults, but the kernel may have to move memory about to make them, which took longer than the faults
on a machine whose memory was in use.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from mmap import PAGESIZE
from types import TracebackType
from typing import TYPE_CHECKING

from sllm_vllm.cores import all_cores_of_worker

if TYPE_CHECKING:
    import torch

MADV_POPULATE_WRITE = 23
"""Linux 5.14: fault pages in as if written to, without changing a byte."""

_SMALLEST = 1 << 20
"""Below this a block is too likely to share its pages with the allocator's other users."""
_PIECE = 4 << 20
"""Bytes between two looks at whether the weights are all there already."""

Range = tuple[int, int]


def page_ranges(tensors: Iterable[torch.Tensor]) -> list[Range]:
    """(address, length) of the whole pages inside large CPU tensors, each memory block once.

    Args:
        tensors: any; those on other devices, small or not contiguous are left out.
    """
    found: dict[int, int] = {}
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or nbytes < _SMALLEST or not tensor.is_contiguous():
            continue
        begin = -(-tensor.data_ptr() // PAGESIZE) * PAGESIZE
        end = (tensor.data_ptr() + nbytes) // PAGESIZE * PAGESIZE
        found[begin] = max(found.get(begin, 0), end - begin)
    return list(found.items())


class TouchAhead:
    """While open, a thread touches the memory of `tensors`, in order; leaving it stops the thread.

    Purely a matter of speed: where the kernel does not know how, it does nothing.

    Attributes:
        touched: bytes made ready.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.touched = 0
        self._ranges: Sequence[Range] = page_ranges(tensors)
        self._stop = threading.Event()
        # Started by the thread that fills the parameters, so its memory policy (vLLM binds a
        # worker's memory to its NUMA node) holds for the pages touched here.
        self._thread = threading.Thread(target=self._run, name="sllm-touch", daemon=True)

    def __enter__(self) -> TouchAhead:
        if self._ranges:
            with all_cores_of_worker():
                self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._ranges:
            self._thread.join()

    def wait(self) -> None:
        """Until everything is touched."""
        if self._ranges:
            self._thread.join()

    def _run(self) -> None:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for begin, length in self._ranges:
            for offset in range(0, length, _PIECE):
                if self._stop.is_set():
                    return
                piece = min(_PIECE, length - offset)
                # ctypes releases the GIL meanwhile.
                if madvise(begin + offset, piece, MADV_POPULATE_WRITE) != 0:
                    return
                self.touched += piece

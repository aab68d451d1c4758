"""Lazy access: nothing is read but what is looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sllm import _native
from sllm.checkpoint.base import Checkpoint, TensorInfo, View
from sllm.errors import OptionError
from sllm.loader.failures import translated
from sllm.loader.tensors import as_bytes, carve, look, torch_dtype

if TYPE_CHECKING:
    import torch


class LazyCheckpoint:
    """A checkpoint opened for reading parts of it.

    Files are mapped on first use; the kernel then reads just the pages that are touched.
    ``checkpoint["name"]`` is the whole tensor, ``checkpoint["name"][2:4]`` touches two rows.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._mapped: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.checkpoint.tensors) + len(self.checkpoint.views)

    def __iter__(self) -> Iterator[str]:
        yield from self.checkpoint.names

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint.tensors or name in self.checkpoint.views

    def keys(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return self.checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions, without reading."""
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """torch dtype, without reading."""
        return torch_dtype(self._find(name).dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as a view of the mapped file; pages are read when touched.

        Raises:
            OptionError: no such tensor.
            LoadError: the file cannot be mapped.
        """
        found = self._find(name)
        if isinstance(found, View):
            return look(self[found.base], found)
        return carve(self._map(found.file), found, 0)

    def slice(self, name: str, *index: Any) -> torch.Tensor:
        """A copy of ``tensor[index]``: only the pages it covers are read, and nothing stays mapped
        on its account."""
        return self[name][index].clone()

    def raw(self, name: str) -> torch.Tensor:
        """A stored tensor's bytes, uint8, shape (nbytes,): for dtypes that torch does not know."""
        found = self._find(name)
        if isinstance(found, View):
            raise OptionError(f"{name!r} is a view of {found.base!r}", hint="ask for the latter")
        return self._map(found.file)[found.offset : found.end]

    def close(self) -> None:
        """Drop the mappings; tensors taken keep theirs."""
        with self._lock:
            self._mapped.clear()

    def __enter__(self) -> LazyCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _find(self, name: str) -> TensorInfo | View:
        found = self.checkpoint.tensors.get(name) or self.checkpoint.views.get(name)
        if found is None:
            raise OptionError(
                f"the checkpoint has no tensor {name!r}",
                path=self.checkpoint.directory,
                hint="`sllm inspect --tensors DIR` lists the names",
            )
        return found

    def _map(self, name: str) -> torch.Tensor:
        with self._lock:
            if name not in self._mapped:
                file = self.checkpoint.files[name]
                request = _native.FileRequest(str(file.path), file.size, (), method="map")
                with translated({str(file.path): file}):
                    job = _native.LoadJob([request])
                    job.start()
                    job.wait()
                    self._mapped[name] = as_bytes(job.region(0))
            return self._mapped[name]

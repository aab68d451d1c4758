"""Tensors that transformers can list at once and take when their bytes have arrived."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sllm.checkpoint.base import Checkpoint, TensorInfo, View
from sllm.errors import SllmError
from sllm.loader import LazyCheckpoint
from sllm_transformers.reading import start_reading
from sllm_transformers.selection import Selection
from sllm_transformers.switch import Options

if TYPE_CHECKING:
    import torch


class TensorSource:
    """The tensors of one checkpoint during one `from_pretrained`.

    Reading starts at once. Leaving the context ends the read; tensors taken stay valid.

    Attributes:
        error: the first error that a read raised.
    """

    def __init__(self, checkpoint: Checkpoint, selection: Selection, options: Options) -> None:
        self.error: SllmError | None = None
        self._checkpoint = checkpoint
        self._selection = selection
        self._closing = ExitStack()
        self._loading = start_reading(checkpoint, selection.ahead, options)
        self._closing.callback(self._loading.close)
        self._rest = LazyCheckpoint(checkpoint)
        self._closing.callback(self._rest.close)
        self._aliases = {
            name: view.base
            for name, view in checkpoint.views.items()
            if name in selection.tied and _is_alias(view, checkpoint.tensors[view.base])
        }
        self._tied_bases = set(self._aliases.values())
        self._shared: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def state_dict(self) -> dict[str, LazyTensor]:
        """Every tensor by name, none of them read yet."""
        checkpoint = self._checkpoint
        found: dict[str, LazyTensor] = {}
        for name in checkpoint.names:
            info = checkpoint.tensors.get(name) or checkpoint.views[name]
            found[name] = LazyTensor(self, name, info.dtype, info.shape)
        return found

    def raise_error(self) -> None:
        """Raise `error`, if there is one: transformers calls a failed read a failed conversion."""
        if self.error is not None:
            raise self.error from None

    def finish(self) -> None:
        """Wait for the end of the read: only then is everything checked.

        Raises:
            sllm.errors.LoadError: reading failed.
        """
        self._loading.wait()

    def take(self, name: str) -> torch.Tensor:
        """The whole tensor, with a storage of its own; blocks until its bytes have arrived.

        Raises:
            sllm.errors.SllmError: reading failed; also kept in `error`.
        """
        try:
            view = self._checkpoint.views.get(name)
            if view is None:
                return self._stored(name)
            return self._view(name, view)
        except SllmError as error:
            self.error = self.error or error
            raise

    def _stored(self, name: str) -> torch.Tensor:
        if name not in self._selection.ahead:
            return with_own_storage(self._rest[name])
        if name not in self._tied_bases:
            return with_own_storage(self._loading.tensor(name))
        with self._lock:
            if name not in self._shared:
                self._shared[name] = with_own_storage(self._loading.tensor(name))
            return self._shared[name]

    def _view(self, name: str, view: View) -> torch.Tensor:
        import torch

        if name in self._aliases:
            return self._stored(view.base)
        # The model keeps the two apart, so writing to one must not change the other.
        supply = self._loading.tensor if name in self._selection.ahead else self._rest.__getitem__
        return supply(name).clone(memory_format=torch.contiguous_format)


class LazyTensor:
    """What transformers takes for a safetensors slice: known shape and dtype, bytes on demand."""

    __slots__ = ("_dtype", "_name", "_shape", "_source")

    def __init__(self, source: TensorSource, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._source = source
        self._name = name
        self._dtype = dtype
        self._shape = shape

    def get_shape(self) -> list[int]:
        """Dimensions."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """safetensors dtype name, e.g. ``BF16``."""
        return self._dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        whole = self._source.take(self._name)
        return whole if index is Ellipsis else whole[index].contiguous()


def _is_alias(view: View, base: TensorInfo) -> bool:
    """Whether the view is its base under another name."""
    contiguous = []
    step = 1
    for size in reversed(view.shape):
        contiguous.append(step)
        step *= max(size, 1)
    return (view.dtype, view.shape, view.storage_offset) == (base.dtype, base.shape, 0) and (
        view.stride == tuple(reversed(contiguous))
    )


def with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory under a storage of just this tensor's bytes, as safetensors makes them.

    With one storage a file, `torch.save` of a single weight would write the whole file,
    `save_pretrained` would take all weights for shared ones, and an in-place update of one weight
    would invalidate the others in autograd (they would share a version counter).
    """
    import torch

    whole = tensor.untyped_storage()
    if tensor.numel() == 0 or whole.nbytes() == tensor.nbytes:
        return tensor
    begin = tensor.storage_offset() * tensor.itemsize
    own = whole[begin : begin + tensor.nbytes]
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(own, 0, tensor.shape, tensor.stride())

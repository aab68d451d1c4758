"""What makes a `View` valid: it stays within its base's bytes, and its elements are aligned."""

from __future__ import annotations

from collections.abc import Sequence

from sllm.checkpoint.base import TensorInfo, View
from sllm.checkpoint.dtypes import TORCH_NAMES, item_size

_LARGEST = (1 << 63) - 1


def check_view(view: View, base: TensorInfo) -> str | None:
    """What is wrong with a view of `base`, or None.

    The elements counted by shape, stride and storage_offset are torch's: of F4, pairs of one
    byte each.
    """
    if not isinstance(view.dtype, str) or view.dtype not in TORCH_NAMES:
        return f"dtype {view.dtype!r:.80} cannot be viewed"
    numbers = (*view.shape, *view.stride, view.storage_offset)
    if not all(type(number) is int and 0 <= number <= _LARGEST for number in numbers):
        return "shape, stride and storage_offset must be whole numbers"
    if len(view.shape) != len(view.stride):
        return f"{len(view.shape)} dimensions, but {len(view.stride)} strides"
    size = item_size(view.dtype)
    elements = 1
    for dimension in view.shape:
        elements *= dimension or 1
        if elements * size > _LARGEST:
            return "larger than any memory"
    end = (view.storage_offset + span(view.shape, view.stride)) * size
    if end > base.nbytes:
        return f"it reaches to byte {end} of {base.nbytes}"
    # Whole elements, so that the layout aligns the base for them wherever it is written.
    if base.nbytes % size or base.offset % size:
        return f"its base of {base.nbytes} bytes at {base.offset} is not aligned for {view.dtype}"
    return None


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to one past the last that a strided tensor touches; 0 when empty."""
    if 0 in shape:
        return 0
    return 1 + sum((dimension - 1) * step for dimension, step in zip(shape, stride, strict=True))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, as torch gives them."""
    strides = []
    step = 1
    for dimension in reversed(shape):
        strides.append(step)
        step *= max(dimension, 1)
    return tuple(reversed(strides))

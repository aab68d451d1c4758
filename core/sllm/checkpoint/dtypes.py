"""Every dtype of safetensors 0.8: its width, and the name torch has for it. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

from sllm.errors import UnsupportedFormatError

BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits an element, by safetensors dtype name."""

TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""Attribute of the torch module, by safetensors dtype name. The 6-bit dtypes have none."""

FROM_TORCH: dict[str, str] = {torch: name for name, torch in TORCH_NAMES.items()}
"""The inverse of `TORCH_NAMES`."""


def torch_shape(dtype: str, shape: Sequence[int], *, tensor: str | None = None) -> tuple[int, ...]:
    """The shape of the torch tensor that holds a stored one.

    The same, except for F4: torch packs two elements into one along the last axis.

    Raises:
        UnsupportedFormatError: an F4 tensor whose last axis cannot be halved.
    """
    if dtype != "F4":
        return tuple(shape)
    if not shape or shape[-1] % 2:
        raise UnsupportedFormatError(
            f"torch packs F4 in pairs along the last axis; shape {tuple(shape)} has none",
            tensor=tensor,
        )
    return (*shape[:-1], shape[-1] // 2)


def stored_shape(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape safetensors records for a torch tensor: the inverse of `torch_shape`."""
    if dtype != "F4" or not shape:
        return tuple(shape)
    return (*shape[:-1], shape[-1] * 2)


def item_size(dtype: str) -> int:
    """Bytes that one torch element of this dtype takes (an F4 pair is one)."""
    return max(1, BITS[dtype] // 8)

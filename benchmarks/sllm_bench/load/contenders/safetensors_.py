"""The safetensors library itself, in both of its ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from sllm_bench.load.contenders.base import Contender, Mode, Variant
from sllm_bench.load.host import HostTensor, from_torch

if TYPE_CHECKING:
    import torch


class Safetensors(Contender):
    """`load_file` of each file: a mapping (the default), or copies made by pread."""

    name = "safetensors"
    packages: ClassVar[Sequence[str]] = ("safetensors", "torch")
    modules: ClassVar[Sequence[str]] = ("safetensors", "torch")

    def variants(self, mode: Mode) -> Sequence[Variant]:
        return (Variant("mmap", "safetensors mmap"), Variant("pread", "safetensors pread"))

    def prepare(self) -> None:
        import safetensors.torch  # noqa: F401

    def load(self, variant: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = {}
        for path in self.setup.model.files:
            tensors |= load_file(path, device="cpu", backend=variant)
        return tensors

    def tensors(self, loaded: dict[str, torch.Tensor]) -> Mapping[str, HostTensor]:
        return from_torch(loaded)

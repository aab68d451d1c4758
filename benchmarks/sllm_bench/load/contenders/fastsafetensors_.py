"""fastsafetensors without GPUDirect, straight to host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sllm_bench.load.contenders.base import Contender, Mode, Variant
from sllm_bench.load.host import HostTensor, from_torch


class FastSafetensors(Contender):
    """`SafeTensorsFileLoader` with its default threads and bounce buffers."""

    name = "fastsafetensors"
    packages: ClassVar[Sequence[str]] = ("fastsafetensors", "torch")
    modules: ClassVar[Sequence[str]] = ("fastsafetensors", "torch")

    def variants(self, mode: Mode) -> Sequence[Variant]:
        return (Variant("nogds", "fastsafetensors"),)

    def prepare(self) -> None:
        import fastsafetensors  # noqa: F401

    def load(self, variant: str) -> Any:
        from fastsafetensors import SafeTensorsFileLoader

        loader = SafeTensorsFileLoader(None, device="cpu", nogds=True)
        loader.add_filenames({0: [str(path) for path in self.setup.model.files]})
        buffers = loader.copy_files_to_device()
        tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}
        return loader, buffers, tensors

    def tensors(self, loaded: Any) -> Mapping[str, HostTensor]:
        return from_torch(loaded[2])

    def release(self, loaded: Any) -> None:
        loader, buffers, tensors = loaded
        tensors.clear()
        buffers.close()
        loader.close()

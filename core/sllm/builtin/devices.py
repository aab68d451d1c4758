"""The built-in devices: host memory, and any accelerator PyTorch can copy to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sllm.hookspecs import hookimpl
from sllm.interfaces import Device

if TYPE_CHECKING:
    import torch


class CpuDevice:
    """Host memory: the loader reads straight into what the tensors use."""

    name = "cpu"

    def unavailable(self) -> str | None:
        return None

    def place(self, data: torch.Tensor, device: str) -> torch.Tensor:
        return data


class CudaDevice:
    """An NVIDIA GPU, through PyTorch's own copy: one allocation and one copy a file."""

    name = "cuda"

    def unavailable(self) -> str | None:
        import torch

        if torch.cuda.is_available():
            return None
        return "PyTorch sees no CUDA device (no GPU, no driver, or a CPU build of PyTorch)"

    def place(self, data: torch.Tensor, device: str) -> torch.Tensor:
        return data.to(device)


@hookimpl
def sllm_devices() -> Iterable[Device]:
    return [CpuDevice(), CudaDevice()]

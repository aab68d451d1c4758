"""Run:ai model streamer, with the settings it chooses by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from sllm_bench.load.contenders.base import Contender, Mode, Variant
from sllm_bench.load.host import HostTensor, from_torch

if TYPE_CHECKING:
    import torch


class RunAI(Contender):
    """`SafetensorsStreamer`, all files in one request, tensors owned by the caller."""

    name = "runai"
    packages: ClassVar[Sequence[str]] = ("runai-model-streamer", "torch")
    modules: ClassVar[Sequence[str]] = ("runai_model_streamer", "torch")

    def variants(self, mode: Mode) -> Sequence[Variant]:
        return (Variant("streamer", "run:ai streamer"),)

    def prepare(self) -> None:
        import runai_model_streamer  # noqa: F401

    def load(self, variant: str) -> dict[str, torch.Tensor]:
        from runai_model_streamer import SafetensorsStreamer

        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(path) for path in self.setup.model.files], device="cpu")
            return dict(streamer.get_tensors())

    def tensors(self, loaded: dict[str, torch.Tensor]) -> Mapping[str, HostTensor]:
        return from_torch(loaded)

"""tensorizer, which needs a copy of the model in a format of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sllm_bench.load.contenders.base import Contender, Mode, Variant
from sllm_bench.load.host import HostTensor, from_torch


class Tensorizer(Contender):
    """`TensorDeserializer`, eager, with the number of readers it chooses."""

    name = "tensorizer"
    packages: ClassVar[Sequence[str]] = ("tensorizer", "torch")
    modules: ClassVar[Sequence[str]] = ("tensorizer", "torch")

    @property
    def _path(self) -> Path:
        return self.setup.scratch / "model.tensors"

    def variants(self, mode: Mode) -> Sequence[Variant]:
        return (Variant("deserializer", "tensorizer (own file)"),)

    def files(self) -> Sequence[Path]:
        return (self._path,)

    def prepare(self) -> None:
        from safetensors.torch import load_file
        from tensorizer import TensorSerializer

        serializer = TensorSerializer(str(self._path))
        for path in self.setup.model.files:
            serializer.write_state_dict(load_file(path))
        serializer.close()

    def load(self, variant: str) -> Any:
        from tensorizer import TensorDeserializer

        deserializer = TensorDeserializer(str(self._path), device="cpu")
        return deserializer, dict(deserializer.items())

    def tensors(self, loaded: Any) -> Mapping[str, HostTensor]:
        return from_torch(loaded[1])

    def release(self, loaded: Any) -> None:
        deserializer, tensors = loaded
        tensors.clear()
        deserializer.close()

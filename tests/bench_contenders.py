"""Loaders that misbehave, for the benchmark to catch. Imported by its worker processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sllm_bench.load.contenders.safetensors_ import Safetensors
from sllm_bench.load.host import HostTensor


class _Single(Safetensors):
    def variants(self, mode: str) -> Any:
        return super().variants("cold")[:1]


class Flipped(_Single):
    """One bit of one tensor is other than in the file."""

    name = "flipped"

    def load(self, variant: str) -> Any:
        loaded = super().load(variant)
        changed = loaded["large"].clone()
        changed.view(-1).view(torch.uint8)[12345] ^= 1
        return {**loaded, "large": changed}


class Missing(_Single):
    """One tensor is not there."""

    name = "missing"

    def tensors(self, loaded: Any) -> Mapping[str, HostTensor]:
        return {n: t for n, t in super().tensors(loaded).items() if n != "large"}


class Reshaped(_Single):
    """Right bytes, wrong shape."""

    name = "reshaped"

    def load(self, variant: str) -> Any:
        loaded = super().load(variant)
        return {**loaded, "large": loaded["large"].reshape(-1)}


class Invented(_Single):
    """A tensor that no file holds."""

    name = "invented"

    def load(self, variant: str) -> Any:
        loaded = super().load(variant)
        return {**loaded, "phantom": loaded["large"]}


class Raising(_Single):
    """Fails with an exception, in the middle of a run."""

    name = "raising"
    loads = 0

    def load(self, variant: str) -> Any:
        self.loads += 1
        if self.loads > 1:
            raise RuntimeError("the disk is on fire")
        return super().load(variant)


class Dying(_Single):
    """The process is gone."""

    name = "dying"

    def load(self, variant: str) -> Any:
        print("last words", flush=True)
        os._exit(7)


class Unstartable(_Single):
    """Is installed, but does not come up."""

    name = "unstartable"

    def prepare(self) -> None:
        raise RuntimeError("no licence")


class Absent(_Single):
    """Needs something that is not installed."""

    name = "absent"
    modules = ("no_such_module_anywhere",)


class Stuck(_Single):
    """Never finishes a load. Whoever reads the FIFO learns its pid, and that it has begun."""

    name = "stuck"

    def load(self, variant: str) -> Any:
        fifo = Path(os.environ["BENCH_TEST_FIFO"])
        fifo.write_text(f"{os.getpid()}\n")
        while True:
            os.read(os.pipe()[0], 1)

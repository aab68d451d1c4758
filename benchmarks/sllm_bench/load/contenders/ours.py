"""sllm itself: what it chooses, each method by force, and without memory from before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from sllm.errors import OptionError
from sllm.hookspecs import hookimpl
from sllm.loader.base import LoadOptions, LoadRecord, Method
from sllm_bench.load.contenders.base import Contender, FirstTouch, Mode, Setup, Variant
from sllm_bench.load.host import PAGE, HostTensor, from_torch

if TYPE_CHECKING:
    import torch

FRESH = "fresh"


class Ours(Contender):
    """`sllm.load` into memory of a pool touched before; `auto` once more into fresh memory."""

    name = "sllm"
    packages: ClassVar[Sequence[str]] = ("torch",)
    modules: ClassVar[Sequence[str]] = ("sllm", "torch")
    holds_memory = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._methods = tuple(setup.methods) or get_args(Method)
        for method in self._methods:
            if method not in get_args(Method):
                raise OptionError(
                    f"unknown load method {method!r}", hint=f"use some of {get_args(Method)}"
                )
        self._record: LoadRecord | None = None

    def variants(self, mode: Mode) -> Sequence[Variant]:
        found = [Variant(method, f"sllm {method}") for method in self._methods]
        if "auto" in self._methods:
            found.append(Variant(FRESH, "sllm auto, fresh memory"))
        return found

    def prepare(self) -> None:
        import torch  # noqa: F401

        import sllm.loader  # noqa: F401
        from sllm import _native
        from sllm.plugins import manager

        manager().register(_Observer(self), "bench-observer")
        sizes = [-(-path.stat().st_size // PAGE) * PAGE for path in self.setup.model.files]
        self._pool = _native.RegionPool(sum(sizes))
        begin = time.perf_counter()
        regions = [self._pool.allocate(size, touch=True) for size in sizes if size]
        self.first_touch = FirstTouch(sum(sizes), time.perf_counter() - begin)
        del regions  # back into the pool

    def load(self, variant: str) -> dict[str, torch.Tensor]:
        import sllm

        fresh = variant == FRESH
        options = LoadOptions(method=cast(Method, "auto" if fresh else variant))
        return sllm.load(
            self.setup.model.directory,
            device=self.setup.device,
            options=options,
            pool=None if fresh else self._pool,
        )

    def tensors(self, loaded: dict[str, torch.Tensor]) -> Mapping[str, HostTensor]:
        return from_torch(loaded)

    def details(self) -> dict[str, Any]:
        if self._record is None:
            return {}
        first = self._record.files[0] if self._record.files else None
        return {
            "method": ", ".join(sorted({file.method for file in self._record.files})),
            "reason": first.reason if first else "",
            "stages": {stage.name: stage.seconds for stage in self._record.stages},
        }


class _Observer:
    """Keeps the last load record, through the hook that anybody may use."""

    def __init__(self, owner: Ours) -> None:
        self._owner = owner

    @hookimpl
    def sllm_load_finished(self, record: LoadRecord) -> None:
        self._owner._record = record

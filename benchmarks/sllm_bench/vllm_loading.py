"""vLLM's model loaders without the rest of an engine: one rank, in this process.

An engine start costs 20 to 30 seconds of imports and set-up that no loader can change. Here vLLM's
own loader objects build and fill vLLM's own model, as a worker does, as often as one likes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.errors import OptionError

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.model_executor.model_loader import BaseModelLoader

# Before vLLM is imported: what it would otherwise do on a machine that others use too.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Format:
    """One way to load.

    Attributes:
        load_format: as in `--load-format`.
        strategy: as in `--safetensors-load-strategy`.
        extra: as in `--model-loader-extra-config`.
        module: a package it needs beyond vLLM.
    """

    load_format: str
    strategy: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None


FORMATS = {
    "sllm": Format("sllm", module="sllm"),
    "auto": Format("auto"),
    "lazy": Format("safetensors", "lazy"),
    "eager": Format("safetensors", "eager"),
    "prefetch": Format("safetensors", "prefetch"),
    "multithread": Format("safetensors", extra={"enable_multithread_load": True}),
    "runai_streamer": Format("runai_streamer", module="runai_model_streamer"),
}
"""Every built-in format that reads an ordinary safetensors model on a CPU. `fastsafetensors` and
`instanttensor` want CUDA, `sharded_state` cannot save what a CPU has repacked, `tensorizer` and
`sharded_state` read files of their own."""


def format_named(name: str) -> Format:
    """One of `FORMATS`, or ``sllm:METHOD`` to force a load method.

    Raises:
        OptionError: there is none of that name.
    """
    known, _, method = name.partition(":")
    if known not in FORMATS or (method and known != "sllm"):
        raise OptionError(
            f"unknown format {name!r}", hint=f"use {', '.join(FORMATS)} or sllm:METHOD"
        )
    found = FORMATS[known]
    return replace(found, extra={"method": method}) if method else found


@dataclass(frozen=True, slots=True)
class Timing:
    """One load.

    Attributes:
        total_seconds: building the model, filling and packing it.
        weights_seconds: filling alone (`BaseModelLoader.load_weights`).
        cpu_seconds: processor time of all threads during the load.
    """

    total_seconds: float
    weights_seconds: float
    cpu_seconds: float


def prepare_environment() -> None:
    """Set what is not set; to be called before vLLM is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _without_accelerator() -> None:
    """What vLLM's CPU worker does before it loads: loaders free the cache of a GPU there is not."""
    import torch

    if not torch.accelerator.is_available():
        torch.accelerator.empty_cache = lambda: None


@contextmanager
def rank_of(
    config: VllmConfig, rank: int = 0, ranks: int = 1, rendezvous: Path | None = None
) -> Iterator[None]:
    """vLLM's distributed state for one tensor-parallel rank, taken down at the end.

    Args:
        config: of `engine_config`.
        rank, ranks: which rank of how many this process is.
        rendezvous: a file that does not exist yet, the same for all ranks; needed with several.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state as state

    _without_accelerator()
    if rendezvous is not None:
        # As vLLM's worker does: names the shared memory through which CPU ranks talk.
        os.environ["VLLM_DIST_IDENT"] = rendezvous.name
    with tempfile.TemporaryDirectory() as scratch, set_current_vllm_config(config):
        state.init_distributed_environment(
            world_size=ranks,
            rank=rank,
            local_rank=rank,
            distributed_init_method=f"file://{rendezvous or Path(scratch) / 'rendezvous'}",
            backend="gloo",
        )
        try:
            state.ensure_model_parallel_initialized(ranks, 1)
            yield
        finally:
            state.cleanup_dist_env_and_memory()


def engine_config(model: Path, way: Format, dtype: str = "auto", ranks: int = 1) -> VllmConfig:
    """What `vllm serve MODEL` with that format would hand to its workers."""
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {
        "model": str(model),
        "load_format": way.load_format,
        "model_loader_extra_config": dict(way.extra),
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": 512,
        "tensor_parallel_size": ranks,
        "disable_log_stats": True,
    }
    if way.strategy is not None:
        arguments["safetensors_load_strategy"] = way.strategy
    config: VllmConfig = EngineArgs(**arguments).create_engine_config()
    return config


def fresh_memory() -> None:
    """Have every large block come from the kernel, as in a process that has just begun.

    glibc would otherwise learn to keep freed blocks, and the first load of a run would be the only
    one to pay for touching its parameters.
    """
    keep_threshold = -3, 1 << 20  # M_MMAP_THRESHOLD, bytes
    ctypes.CDLL(None).mallopt(*keep_threshold)


def _timed(call: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            into.append(time.perf_counter() - started)

    return timed


def make_loader(config: VllmConfig) -> BaseModelLoader:
    """The loader object a worker would use."""
    from vllm.model_executor.model_loader import get_model_loader

    return get_model_loader(config.load_config)


def load_model(
    config: VllmConfig, after_weights: Callable[[nn.Module], None] | None = None
) -> Timing:
    """Build, fill and drop the model once.

    Args:
        config: of `engine_config`.
        after_weights: sees the filled model before vLLM repacks it.
    """
    from vllm.config import set_current_vllm_config

    loader = make_loader(config)
    weights: list[float] = []
    fill = _timed(loader.load_weights, weights)

    def load_weights(model: nn.Module, model_config: Any) -> None:
        fill(model, model_config)
        if after_weights is not None:
            after_weights(model)

    loader.load_weights = load_weights
    # Modules register themselves here by name, once per configuration.
    config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(config):
        started, cpu = time.perf_counter(), time.process_time()
        model = loader.load_model(vllm_config=config, model_config=config.model_config)
        total, cpu = time.perf_counter() - started, time.process_time() - cpu
    config.compilation_config.static_forward_context.clear()
    del model, loader
    gc.collect()
    return Timing(total, weights[0], cpu)

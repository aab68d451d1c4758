"""`load`, `stream`, `open` and `prefetch`: what callers use."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.checkpoint import read_checkpoint
from sllm.errors import OptionError
from sllm.interfaces import Device
from sllm.loader import prefetching
from sllm.loader.base import LoadOptions, Progress
from sllm.loader.lazy import LazyCheckpoint
from sllm.loader.loading import Loading
from sllm.loader.plan import make_plan
from sllm.loader.resolve import resolve

if TYPE_CHECKING:
    import torch

    from sllm import _native


def _device(device: str) -> Device:
    from sllm.plugins import named

    found: Device = named("sllm_devices", device.partition(":")[0])
    reason = found.unavailable()
    if reason is not None:
        raise OptionError(
            f"device {device!r} cannot be used: {reason}", hint="device='cpu' works everywhere"
        )
    return found


def _start(
    path: Path,
    source: str,
    model: str,
    *,
    device: str,
    options: LoadOptions | None,
    names: Collection[str] | None = None,
    prefetch_files: int = 0,
    pool: _native.RegionPool | None = None,
) -> Loading:
    return Loading(
        make_plan(read_checkpoint(path), names),
        model=model,
        source=source,
        device=_device(device),
        device_name=device,
        options=options,
        prefetch_files=prefetch_files,
        pool=pool,
    )


def stream(
    model: str | Path,
    *,
    names: Collection[str] | None = None,
    device: str = "cpu",
    options: LoadOptions | None = None,
    prefetch_files: int = 0,
    pool: _native.RegionPool | None = None,
) -> Loading:
    """Start a load and hand out tensors while it runs.

    Args:
        model: directory, safetensors file or URI.
        names: tensors to read; None reads all.
        device: where tensors are wanted, e.g. ``cpu`` or ``cuda:0``.
        options: how to read; the defaults choose.
        prefetch_files: at most so many files in memory that were read but not iterated over yet;
            0 means no limit. It bounds host memory when each tensor is copied away at once.
        pool: memory to read into, reused between loads; a fresh allocation without it.

    Returns:
        A `Loading`, to be used as a context manager. A read that `prefetch` started for the same
        model is taken over if it was for everything.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OptionError: an unknown tensor, device or scheme.
    """
    path, source = resolve(model)
    if names is None:
        running = prefetching.take(path, device)
        if running is not None:
            return running
    return _start(
        path,
        source,
        str(model),
        names=names,
        device=device,
        options=options,
        prefetch_files=prefetch_files,
        pool=pool,
    )


def load(
    model: str | Path,
    *,
    names: Collection[str] | None = None,
    device: str = "cpu",
    options: LoadOptions | None = None,
    pool: _native.RegionPool | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Load a checkpoint's tensors.

    Args:
        model, names, device, options, pool: as for `stream`.
        progress: called with (bytes done, bytes in all) while reading.

    Returns:
        Tensors by name. On the CPU they are views of one memory region a file: private to this
        process, writable, and freed when the last of them is.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        LoadError: reading failed.
        OptionError: an unknown tensor, device or scheme.
    """
    with stream(model, names=names, device=device, options=options, pool=pool) as loading:
        if progress is not None:
            loading.wait(progress)
        wanted = loading.names if names is None else names
        tensors = {name: loading.tensor(name) for name in wanted}
        loading.wait()
    return tensors


def open(model: str | Path) -> LazyCheckpoint:
    """Look into a checkpoint without reading it: names, shapes, single tensors, slices.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    path, _ = resolve(model)
    return LazyCheckpoint(read_checkpoint(path))


def prefetch(model: str | Path, *, device: str = "cpu", options: LoadOptions | None = None) -> None:
    """Start reading a model now; a later `load` or `stream` of it takes the running read over.

    Call it before heavy imports: reading needs neither torch nor the GIL. A second call for the
    same model replaces the first.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    path, source = resolve(model)
    loading = _start(path, source, str(model), device=device, options=options)
    prefetching.offer(path, device, loading)

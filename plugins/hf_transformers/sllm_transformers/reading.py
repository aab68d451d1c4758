"""Start the read of a checkpoint, or join the one that `sllm.prefetch` started."""

from __future__ import annotations

from collections.abc import Set

from sllm.checkpoint.base import Checkpoint
from sllm.errors import LoadError
from sllm.loader import Loading
from sllm.loader.plan import make_plan
from sllm.loader.prefetching import take
from sllm.plugins import named
from sllm_transformers.memory import available_bytes
from sllm_transformers.switch import Options, load_options


def start_reading(checkpoint: Checkpoint, names: Set[str], options: Options) -> Loading:
    """Read `names` (a part or all of the checkpoint's) from now on.

    A prefetched read of the same files is joined even if it reads more than `names`.

    Raises:
        sllm.errors.SllmError: the read cannot be started.
    """
    running = take(checkpoint.directory, "cpu")
    if running is not None:
        if running.checkpoint.files.keys() == checkpoint.files.keys():
            return running
        running.close()
    _check_memory(checkpoint, names, options)
    everything = len(names) == len(checkpoint.names)
    return Loading(
        make_plan(checkpoint, None if everything else names),
        model=str(checkpoint.directory),
        source="file",
        device=named("sllm_devices", "cpu"),
        options=load_options(options),
    )


def _check_memory(checkpoint: Checkpoint, names: Set[str], options: Options) -> None:
    """Reading ahead what cannot stay in memory helps nobody; the stock path reads what it uses.

    Raises:
        LoadError: what shall be read may not fit.
    """
    if options.get("method", "auto") != "auto":
        return
    wanted = sum(info.nbytes for name, info in checkpoint.tensors.items() if name in names)
    available = available_bytes()
    if available is not None and wanted > available:
        raise LoadError(
            f"{wanted / 1e9:.1f} GB to read, {available / 1e9:.1f} GB of memory are available",
            path=checkpoint.directory,
            hint="free memory, or offload parts with device_map",
        )

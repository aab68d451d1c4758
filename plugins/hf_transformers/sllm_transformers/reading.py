"""Start the read of a checkpoint, or join the one that `sllm.prefetch` started."""

from __future__ import annotations

from collections.abc import Set

from sllm.checkpoint.base import Checkpoint
from sllm.loader import Loading, LoadOptions
from sllm.loader.plan import make_plan
from sllm.loader.prefetching import take
from sllm.plugins import named


def start_reading(checkpoint: Checkpoint, names: Set[str], options: LoadOptions) -> Loading:
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
    everything = len(names) == len(checkpoint.names)
    return Loading(
        make_plan(checkpoint, None if everything else names),
        model=str(checkpoint.directory),
        source="file",
        device=named("sllm_devices", "cpu"),
        options=options,
    )

"""What the worker says about a load. Imports neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from sllm.loader.base import LoadRecord


def summary(records: Sequence[LoadRecord], seconds: float) -> str:
    """One line for people.

    Args:
        records: of the loads that supplied the weights.
        seconds: from the first read until the last weight was in its parameter.
    """
    nbytes = sum(record.nbytes for record in records)
    files = [file for record in records for file in record.files]
    tiers = "+".join(sorted({file.tier for file in files})) or "nowhere"
    methods = "+".join(sorted({file.method for file in files})) or "nothing to read"
    rate = nbytes / seconds / 1e9 if seconds > 0 else 0.0
    return (
        f"sllm: {nbytes / 1e9:.3f} GB of weights in {seconds:.2f} s ({rate:.2f} GB/s), "
        f"{len(files)} file{'s' if len(files) != 1 else ''} from {tiers} by {methods}"
    )

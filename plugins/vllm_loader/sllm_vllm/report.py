"""What the worker says about a load. Imports neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from sllm.loader.base import LoadRecord


def summary(records: Sequence[LoadRecord], filled_in: float) -> str:
    """One line for people.

    Args:
        records: of the loads that supplied the weights.
        filled_in: seconds in which vLLM filled its parameters. Reading may have begun earlier, and
            a file that is mapped is read as it is copied.
    """
    files = [file for record in records for file in record.files]
    tiers = "+".join(sorted({file.tier for file in files})) or "nowhere"
    methods = "+".join(sorted({file.method for file in files})) or "nothing"
    nbytes = sum(record.nbytes for record in records)
    reading = sum(s.seconds for record in records for s in record.stages if s.name == "read")
    rate = nbytes / filled_in / 1e9 if filled_in > 0 else 0.0
    return (
        f"sllm: {nbytes / 1e9:.3f} GB of weights in {filled_in:.2f} s ({rate:.2f} GB/s); "
        f"{len(files)} file{'' if len(files) == 1 else 's'} from {tiers} by {methods}, "
        f"readers busy for {reading:.2f} s"
    )

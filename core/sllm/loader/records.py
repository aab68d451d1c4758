"""Load records reach whoever observes them."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

from sllm.loader.base import FileRecord, LoadRecord, Stage
from sllm.trace import append_line

if TYPE_CHECKING:
    from sllm import _native

logger = logging.getLogger("sllm.loader")

RECORDS_VARIABLE = "SLLM_RECORDS"
"""Names a file to which every load appends its record as one line of JSON."""


def file_record(name: str, stats: _native.FileStats) -> FileRecord:
    """The public form of what the native loader measured for one file."""
    return FileRecord(
        name=name,
        nbytes=stats.nbytes,
        method=stats.method,
        reason=stats.reason,
        tier="page-cache" if stats.method == "map" and stats.resident > 0.5 else "disk",
        resident=stats.resident,
        seconds=max(0.0, stats.finished - stats.started),
        verified=stats.verified,
    )


def stages(all_stats: list[_native.FileStats], place_seconds: float) -> list[Stage]:
    """The pipeline's stages summed over files."""
    nbytes = sum(stats.nbytes for stats in all_stats)
    verified = sum(stats.nbytes for stats in all_stats if stats.verified)
    found = [
        Stage("allocate", nbytes, sum(stats.allocate_seconds for stats in all_stats)),
        Stage("read", nbytes, sum(stats.read_seconds for stats in all_stats)),
        Stage("verify", verified, sum(stats.verify_seconds for stats in all_stats)),
    ]
    if place_seconds:
        found.append(Stage("place", nbytes, place_seconds))
    return found


def emit(record: LoadRecord) -> None:
    """Tell every observer. What an observer raises is logged: it must not fail a load."""
    from sllm.plugins import manager

    if record.error:
        logger.warning("loading %s failed: %s", record.model, record.error)
    else:
        logger.info(
            "loaded %s: %.1f MB in %.3f s (%.2f GB/s, %s, %s)",
            record.model,
            record.nbytes / 1e6,
            record.seconds,
            record.bandwidth / 1e9,
            record.tier,
            "+".join(sorted({file.method for file in record.files})) or "nothing to read",
        )
    for implementation in manager().hook.sllm_load_finished.get_hookimpls():
        try:
            # An implementation may leave the argument out, as with every pluggy hook.
            implementation.function(*(record for _ in implementation.argnames))
        except Exception:
            logger.exception("load observer %r failed", implementation.plugin_name)


def append_to_file(record: LoadRecord) -> None:
    """Append one JSON line to the file that `SLLM_RECORDS` names; nothing without it."""
    path = os.environ.get(RECORDS_VARIABLE)
    if not path:
        return
    append_line(path, json.dumps(record.as_dict()))

"""The built-in load observer: JSON lines for scripts."""

from __future__ import annotations

from sllm.hookspecs import hookimpl
from sllm.loader.base import LoadRecord
from sllm.loader.records import append_to_file


@hookimpl
def sllm_load_finished(record: LoadRecord) -> None:
    append_to_file(record)

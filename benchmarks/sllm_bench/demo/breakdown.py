"""Where a start of vLLM went, from marks, load records and vLLM's own log lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sllm.errors import EngineError
from sllm_bench.demo.serving import ENGINE_LOGS, RECORDS, TRACE, Answer, lines

PROCESSES = ("API server", "engine core", "worker")


@dataclass(frozen=True, slots=True)
class Row:
    """One phase: seconds, and a remark such as the bandwidth."""

    phase: str
    seconds: float
    remark: str = ""


def _logged(log: str, pattern: str) -> float:
    """The number that vLLM logged; an error if it did not, rather than a zero nobody measured."""
    found = re.search(pattern, log)
    if found is None:
        raise EngineError(f"vLLM's log has no line like {pattern!r}; did its wording change?")
    return float(found[1])


def _weights(folder: Path, log: str, nbytes: int) -> Row:
    seconds = _logged(log, r"Loading weights took ([\d.]+) s")
    records = lines(folder / RECORDS)
    if records:
        (record,) = records
        methods = "+".join(sorted({file["method"] for file in record["files"]}))
        remark = f"read from {record['tier']} by {methods} at {record['bandwidth'] / 1e9:.2f} GB/s"
    else:
        remark = f"{nbytes / 1e9 / max(seconds, 0.01):.2f} GB/s"
    return Row("weights, until they are in the model", seconds, remark)


def rows(folder: Path, answer: Answer, nbytes: int) -> list[Row]:
    """The phases of one start, in order; they add up to the time to the first token.

    Args:
        folder: what `served` wrote to.
        answer: of the first request.
        nbytes: size of the weights.

    Raises:
        EngineError: a phase left no trace.
    """
    (log_file,) = (folder / ENGINE_LOGS).iterdir()
    log = log_file.read_text(errors="replace")
    marks = [m for m in lines(folder / TRACE) if m["event"] == "vllm-plugins"]
    if len(marks) != len(PROCESSES):
        raise EngineError(f"{len(marks)} processes of vLLM were seen, expected {PROCESSES}")
    found = [
        Row(f"{name}: process and imports", mark["age"])
        for name, mark in zip(PROCESSES, marks, strict=True)
    ]
    found.append(Row("model built, empty", _logged(log, r"Initializing model took ([\d.]+) s")))
    found.append(_weights(folder, log, nbytes))
    found.append(
        Row(
            "engine initialisation (KV cache, warm-up)",
            _logged(log, r"init engine .*?took ([\d.]+) s"),
        )
    )
    rest = answer.engine_start - sum(row.seconds for row in found)
    found.append(Row("all else (configuration, packing of weights, HTTP server)", rest))
    found.append(Row("ready", answer.engine_start))
    found.append(Row("first token of the first request", answer.first_token))
    return found

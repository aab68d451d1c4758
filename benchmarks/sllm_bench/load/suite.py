"""The measurement itself: workers up, then rounds in which everybody takes one turn."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sllm_bench.load import cache, digest
from sllm_bench.load.client import Worker
from sllm_bench.load.contenders import contender_class
from sllm_bench.load.contenders.base import Contender, Mode, Setup, Variant
from sllm_bench.load.errors import BenchError, WorkerError
from sllm_bench.load.model import ModelFiles
from sllm_bench.load.results import Row, Sample

CALIBRATION_ROUNDS = 2
FINALISTS = 2
"""The raw limit's candidates are many; only the best few of a trial are worth a turn per round.
Choosing by other samples than those reported also keeps luck out of the limit."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    Attributes:
        contenders: `module:Class` of each.
        modes: cold, warm or both.
        rounds: turns each variant takes, per mode.
        methods: load methods of ours to force; empty for all.
        device: where tensors shall end up.
        drop_caches: drop the whole machine's page cache, not just the files' pages.
        seed: of the order within each round.
        timeout: seconds a single load may take.
    """

    contenders: Sequence[str]
    modes: Sequence[Mode]
    rounds: int
    methods: Sequence[str] = ()
    device: str = "cpu"
    drop_caches: bool = False
    seed: int = 0
    timeout: float = 600.0


@dataclass(slots=True)
class Entrant:
    """A contender that is up and ready."""

    name: str
    worker: Worker
    files: list[Path]
    variants: dict[Mode, list[Variant]]
    versions: dict[str, str]
    first_touch: tuple[int, float] | None


@dataclass(slots=True)
class Outcome:
    """Everything measured.

    Attributes:
        rows: per mode, in order of appearance.
        skipped: contender name to the reason it cannot take part here.
        broken: contender name to the error of one that can but did not start.
        versions: distribution to version.
        first_touch: contender name to (bytes, seconds) of obtaining the memory it reuses.
    """

    rows: dict[Mode, list[Row]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    first_touch: dict[str, tuple[int, float]] = field(default_factory=dict)


Report = Callable[[str], None]


def run(model: ModelFiles, settings: Settings, report: Report) -> Outcome:
    """Measure; workers and scratch files are gone when this returns or raises.

    Args:
        model: what to load.
        settings: how.
        report: told what happens, in a few words each time.

    Raises:
        BenchError: it cannot be measured as asked.
    """
    outcome = Outcome()
    able = _able(settings, outcome)
    _check_memory(model, able)
    with contextlib.ExitStack() as stack:
        report("reading the files for their checksums")
        expected = digest.of_files(model)
        scratch = stack.enter_context(_scratch(model.directory))
        setup = Setup(model, scratch, settings.device, tuple(settings.methods))
        entrants = []
        for spec, kind in able.items():
            report(f"{kind.name}: starting and touching memory")
            entrant = _enter(stack, spec, kind, setup, settings, outcome)
            if entrant is not None:
                entrants.append(entrant)
        for mode in settings.modes:
            outcome.rows[mode] = _Mode(mode, model, settings, expected, report).run(entrants)
    return outcome


def _able(settings: Settings, outcome: Outcome) -> dict[str, type[Contender]]:
    able = {}
    for spec in settings.contenders:
        kind = contender_class(spec)
        reason = kind.unavailable(settings.device)
        if reason is None:
            able[spec] = kind
        else:
            outcome.skipped[kind.name] = reason
    if not able:
        raise BenchError(
            "no contender can take part",
            hint="; ".join(f"{name}: {reason}" for name, reason in outcome.skipped.items()),
        )
    return able


def _check_memory(model: ModelFiles, able: dict[str, type[Contender]]) -> None:
    """Swapping or an out-of-memory kill would spoil more than the measurement."""
    copies = 1 + sum(kind.holds_memory for kind in able.values())
    free = available_memory()
    if copies * model.nbytes > free:
        raise BenchError(
            f"needs memory for {copies} copies of {model.nbytes / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are available",
            path=model.directory,
            hint="measure a smaller model or fewer --contenders",
        )


def available_memory() -> int:
    """Bytes that can be had without swapping (MemAvailable)."""
    with Path("/proc/meminfo").open() as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo has no MemAvailable", hint="needs Linux 3.14 or newer")


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder beside the model, hence on the same disk; somewhere else when that is read-only."""
    try:
        folder = tempfile.mkdtemp(prefix=".sllm-bench-", dir=directory.parent)
    except OSError:
        folder = tempfile.mkdtemp(prefix="sllm-bench-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _enter(
    stack: contextlib.ExitStack,
    spec: str,
    kind: type[Contender],
    setup: Setup,
    settings: Settings,
    outcome: Outcome,
) -> Entrant | None:
    worker = stack.enter_context(Worker(spec, setup, settings.timeout))
    try:
        ready = worker.request("prepare")
    except WorkerError as error:
        outcome.broken[kind.name] = str(error)
        worker.close()
        return None
    touched = ready["first_touch"]
    if touched is not None:
        outcome.first_touch[kind.name] = (touched[0], touched[1])
    outcome.versions |= ready["versions"]
    return Entrant(
        name=kind.name,
        worker=worker,
        files=[Path(file) for file in ready["files"]],
        variants={mode: [Variant(*v) for v in vs] for mode, vs in ready["variants"].items()},
        versions=ready["versions"],
        first_touch=touched,
    )


class _Mode:
    """One mode's rounds."""

    def __init__(
        self,
        mode: Mode,
        model: ModelFiles,
        settings: Settings,
        expected: digest.Digest,
        report: Report,
    ) -> None:
        self._mode = mode
        self._model = model
        self._settings = settings
        self._expected = expected
        self._report = report

    def run(self, entrants: Sequence[Entrant]) -> list[Row]:
        turns = []
        for entrant in entrants:
            rows = [
                Row(entrant.name, variant.key, variant.label, variant.limit)
                for variant in entrant.variants[self._mode]
            ]
            for row in rows:
                self._check(entrant, row)
            dropped = self._beaten(entrant, [row for row in rows if row.limit])
            turns += [(entrant, row) for row in rows if row.variant not in dropped]
        for number in range(self._settings.rounds):
            self._round(turns, number)
        return [row for _, row in turns]

    def _round(self, turns: Sequence[tuple[Entrant, Row]], number: int) -> None:
        order = [(entrant, row) for entrant, row in turns if row.failure is None]
        random.Random(f"{self._settings.seed}/{self._mode}/{number}").shuffle(order)
        for place, (entrant, row) in enumerate(order, 1):
            self._report(
                f"{self._mode}, round {number + 1}/{self._settings.rounds}, "
                f"{place}/{len(order)}: {row.label}"
            )
            self._sample(entrant, row, number)

    def _check(self, entrant: Entrant, row: Row) -> None:
        """Weights that load fast and wrong are the worst failure there is."""
        self._report(f"{self._mode}, checking the bytes: {row.label}")
        self._set_cache(entrant)
        try:
            found = entrant.worker.request("check", variant=row.variant)["digest"]
        except WorkerError as error:
            row.failure = str(error)
            return
        row.failure = digest.difference(self._expected, found, self._model.views)
        row.wrong = row.failure is not None

    def _beaten(self, entrant: Entrant, limits: Sequence[Row]) -> set[str]:
        """Candidates for the raw limit that a trial leaves behind. Its samples are not kept."""
        able = [row for row in limits if row.failure is None]
        if len(able) <= FINALISTS:
            return set()
        for number in range(CALIBRATION_ROUNDS):
            for row in able:
                self._report(f"{self._mode}, choosing the raw limit: {row.label}")
                self._sample(entrant, row, number)
        ranked = sorted((row for row in able if row.complete), key=lambda row: row.median)
        for row in able:
            row.samples.clear()
        return {row.variant for row in ranked[FINALISTS:]}

    def _set_cache(self, entrant: Entrant) -> float:
        if self._mode == "cold":
            return cache.make_cold(entrant.files, drop_all=self._settings.drop_caches)
        return cache.make_warm(entrant.files)

    def _sample(self, entrant: Entrant, row: Row, number: int) -> None:
        resident = self._set_cache(entrant)
        try:
            answer = entrant.worker.request("sample", variant=row.variant)
        except WorkerError as error:
            row.failure = str(error)
            return
        row.samples.append(Sample(round=number, resident=resident, **answer))


def failures(outcome: Outcome) -> list[str]:
    """One line or more for everybody who failed or loaded something wrong."""
    started = [f"{name}: {reason}" for name, reason in outcome.broken.items()]
    return started + [
        f"{row.contender}, {mode}, {row.label}: {row.failure}"
        for mode, rows in outcome.rows.items()
        for row in rows
        if row.failure is not None
    ]

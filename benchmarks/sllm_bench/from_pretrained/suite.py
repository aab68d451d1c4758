"""Rounds of samples: every loader takes its turn in each, the cache brought into a known state."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sllm_bench.load import cache

LOADERS = ("stock", "sllm")
WHATS = ("load", "logits")
MODES = ("cold", "warm")

Sample = dict[str, float]
Key = tuple[str, str, str]
"""What is measured, the page cache's state, the loader."""


@dataclass(slots=True)
class Results:
    """Samples by what, mode and loader; seconds."""

    samples: dict[Key, list[Sample]] = field(default_factory=dict)

    def add(self, key: Key, sample: Sample) -> None:
        """One more sample."""
        self.samples.setdefault(key, []).append(sample)

    def median(self, key: Key, part: str) -> float:
        """Median of one part of a key's samples."""
        return statistics.median(sample[part] for sample in self.samples[key])

    def spread(self, key: Key, part: str) -> tuple[float, float]:
        """Least and greatest value."""
        values = [sample[part] for sample in self.samples[key]]
        return min(values), max(values)


def run(
    directory: Path,
    *,
    whats: Sequence[str],
    modes: Sequence[str],
    rounds: int,
    seed: int = 0,
    told: Callable[[str], None] = lambda _: None,
) -> Results:
    """Measure; each sample in a fresh process.

    Args:
        whats: of `WHATS`: ``load`` is from_pretrained plus touching every page, imports done
            before; ``logits`` is process start to first logits.
        told: called with a line about each sample.

    Raises:
        BenchError: the page cache cannot be brought into the wanted state.
    """
    files = sorted(directory.glob("*.safetensors"))
    results = Results()
    order = random.Random(seed)
    # The imports' own files belong into the page cache, whoever comes first.
    cache.make_warm(files)
    _sample("logits", "stock", directory)
    for number in range(rounds):
        turns = [(w, m, loader) for w in whats for m in modes for loader in LOADERS]
        order.shuffle(turns)
        for what, mode, loader in turns:
            if mode == "cold":
                cache.make_cold(files, drop_all=False)
            else:
                cache.make_warm(files)
            sample = _sample(what, loader, directory)
            results.add((what, mode, loader), sample)
            told(f"round {number + 1}: {what} {mode} {loader}: {sample['total']:.3f} s")
    return results


def _sample(what: str, loader: str, directory: Path) -> Sample:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLLM_")}
    if what == "logits" and loader == "sllm":
        environment |= {"SLLM_TRANSFORMERS": "1", "SLLM_PREFETCH": str(directory)}
    command = [sys.executable, "-m", "sllm_bench.from_pretrained.sample"]
    started = time.time()
    done = subprocess.run(
        [*command, what, loader, str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    sample: Sample = json.loads(done.stdout)
    if what == "logits":
        sample = {
            "imports": sample["imported"] - started,
            "load": sample["loaded"] - sample["imported"],
            "forward": sample["logits"] - sample["loaded"],
            "total": sample["logits"] - started,
            "cpu": sample["cpu"],
        }
    return sample

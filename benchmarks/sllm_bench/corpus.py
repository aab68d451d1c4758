"""Text to train small tokenizers on, so that no download is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

BUILT_IN = """\
A checkpoint is a directory of tensors. A shard is one file of it. Loading moves bytes from a disk
to the memory of a processor, and the slowest link decides how long that takes.
Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.
How many clips did Natalia sell altogether in April and May? She sold 48 / 2 = 24 clips in May.
Le modèle répond en français; das Modell antwortet auf Deutsch; モデルは日本語で答えます。
Emoji take several bytes each: 🙂 🚀 🧪 and so do accents: café, naïve, Ångström.
def load(path: str) -> dict[str, Tensor]:  # returns names and tensors
    return {name: tensor for name, tensor in read(path)}
"""


def prompts_file() -> Path | None:
    """A JSON-lines file of questions: what `SLLM_PROMPTS` names, or one beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k_test.jsonl"
    path = Path(os.environ.get("SLLM_PROMPTS", beside))
    return path if path.is_file() else None


def prompts() -> list[str]:
    """Questions to ask a model: real ones where a file of them is at hand."""
    path = prompts_file()
    if path is None:
        return ["How many clips did Natalia sell altogether in April and May?"]
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["question"] for line in lines]


def training_text() -> Iterator[str]:
    """Lines to train a tokenizer on; the same on every machine, so that models are reproducible."""
    yield from BUILT_IN.splitlines()

"""How tokens are chosen and when a generation ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """None means: what the model's generation_config.json says, else the OpenAI default.

    Attributes:
        max_tokens: at most so many new tokens.
        temperature: 0 is greedy.
        top_p: nucleus probability mass in (0, 1].
        top_k: only the k likeliest tokens; 0 for all.
        repetition_penalty: 1 for none.
        seed: makes sampling repeatable.
        stop: texts that end the generation; they are not part of the output.
        ignore_eos: go on after an end-of-sequence token.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

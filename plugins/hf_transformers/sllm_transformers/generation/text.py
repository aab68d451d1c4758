"""Tokens to text, piece by piece: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes do not make up a character (yet)."""


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class IncrementalDetokenizer:
    """Emits text as soon as it cannot change any more.

    A few tokens before the new ones are decoded along with them, because what a token looks like
    may depend on its left neighbour (SentencePiece drops the space at the start of a text).
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def add(self, token_id: int) -> str:
        """The text that became final with this token; often empty in the middle of a character."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """The rest, with replacement characters for bytes that never became a character."""
        text = self._new_text()
        self._advance()
        return text

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _advance(self) -> None:
        self._context = self._emitted
        self._emitted = len(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class StopScanner:
    """Holds text back while it may turn out to be the beginning of a stop string.

    Attributes:
        stopped: the stop string that was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped: str | None = None

    def add(self, text: str) -> str:
        """The text that is certain to be output; after a stop string nothing is."""
        if self.stopped is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            end, self.stopped = min(found)
            text, self._held = self._held[:end], ""
            return text
        keep = self._possible_beginning()
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text

    def flush(self) -> str:
        """What was held back, at the end of the generation."""
        text, self._held = self._held, ""
        return text

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

"""Tokens to text: the pieces add up, no character is torn, stop strings are found across pieces."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from sllm_transformers.generation.text import (
    REPLACEMENT,
    IncrementalDetokenizer,
    StopScanner,
)


class Bytes:
    """A tokenizer whose tokens are bytes; 256 is a special token."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return bytes(i for i in token_ids if i < 256).decode(errors="replace")


class Words:
    """A tokenizer that writes a space before every word but the first, as SentencePiece does."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(f"w{i}" for i in token_ids)


@given(st.lists(st.integers(0, 256), max_size=60))
@example([0xF0, 0x9F, 0x98, 0x80])
@example([0xE2, 0x82, 0x41, 256, 0xC3])
def test_pieces_add_up_to_the_whole_for_any_bytes(ids: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(Bytes())
    pieces = [detokenizer.add(token_id) for token_id in ids]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == Bytes().decode(ids, skip_special_tokens=True)
    assert detokenizer.flush() == ""


@given(st.text(max_size=30))
def test_no_character_is_torn(text: str) -> None:
    detokenizer = IncrementalDetokenizer(Bytes())
    if REPLACEMENT in text:
        text = text.replace(REPLACEMENT, "")
    pieces = [detokenizer.add(byte) for byte in text.encode(errors="ignore")]
    assert all(REPLACEMENT not in piece for piece in pieces)
    assert "".join(pieces) == text.encode(errors="ignore").decode()


def test_the_space_between_words_is_kept() -> None:
    detokenizer = IncrementalDetokenizer(Words())
    assert [detokenizer.add(number) for number in range(4)] == ["w0", " w1", " w2", " w3"]


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 5), max_size=30),
)
def test_the_first_stop_string_ends_the_text(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces = []
    rest = text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    scanner = StopScanner(stops)
    output = "".join(scanner.add(piece) for piece in pieces)
    if scanner.stopped is None:
        output += scanner.flush()
    ends = [text.index(stop) for stop in stops if stop in text]
    if not ends:
        assert output == text
        assert scanner.stopped is None
        return
    # Whatever the cuts, no stop string is ever output, and everything before the first one is.
    assert scanner.stopped in stops
    assert text.startswith(output)
    assert not any(stop in output for stop in stops)
    assert text[len(output) :].startswith(scanner.stopped)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["</end>"])
    assert scanner.add("Hello <") == "Hello "
    assert scanner.add("b") == "<b"
    assert scanner.add(" </en") == " "
    assert scanner.add("d> and more") == ""
    assert scanner.stopped == "</end>"
    assert scanner.add("x") == ""

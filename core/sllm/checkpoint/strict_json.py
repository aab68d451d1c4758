"""JSON as strict as safetensors' own parser, which is stricter than Python's.

Python's parser lets through what others refuse or read otherwise: duplicate keys, NaN,
lone surrogates, any nesting depth. Two readers that disagree about a header load
different models, so none of that is accepted here.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class StrictJSONError(ValueError):
    """What is wrong, and where if that is known.

    Attributes:
        offset: byte offset into the document, or None.
    """

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


def parse(raw: bytes, *, numbers: str = "natural") -> Any:
    """Parse one JSON document.

    Args:
        raw: the document, UTF-8.
        numbers: ``natural`` allows integers >= 0 alone, ``any`` also negative and finite
            floating-point ones.

    Raises:
        StrictJSONError: anything is wrong with it.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"not UTF-8: {error.reason}", error.start) from None
    natural = numbers == "natural"
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            # Left out where it cannot matter: a call per number doubles the time.
            parse_int=_natural if natural and "-" in text else None,
            parse_float=_no_float if natural else _finite_float,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8", "replace"))
        raise StrictJSONError(error.msg, offset) from None
    except StrictJSONError:
        raise
    except RecursionError:
        raise StrictJSONError("nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise StrictJSONError(str(error)) from None
    # Only an escape can bring a surrogate in: the UTF-8 decoder refuses them.
    if "\\ud" in text or "\\uD" in text:
        _refuse_surrogates(document)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJSONError(f"duplicate name {key!r:.300}")
            seen.add(key)
    return found


def _natural(text: str) -> int:
    if text.startswith("-"):
        raise StrictJSONError(f"negative number {text}")
    return int(text)


def _no_float(text: str) -> NoReturn:
    raise StrictJSONError(f"{text[:40]} where only whole numbers belong")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJSONError(f"number {text[:40]} is out of range")
    return value


def _no_constant(text: str) -> NoReturn:
    raise StrictJSONError(f"{text} is not JSON")


def _refuse_surrogates(document: Any) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJSONError("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise StrictJSONError("nested too deeply") from None

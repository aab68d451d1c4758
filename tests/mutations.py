"""Damage for the fuzzers: to bytes, to the text of JSON, and to the length in front of a header."""

from __future__ import annotations

import random
import re
import struct

TOKENS = re.compile(rb'-?\d+|"(?:[^"\\]|\\.)*"|[\[\]{}:,]|true|false|null')

REPLACEMENTS = [
    b"0", b"1", b"-1", b"-0", b"2", b"7", b"8", b"9", b"64", b"4096", b"4294967295", b"4294967296",
    b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615",
    b"18446744073709551616", b"1e3", b"1E400", b"0.5", b"1.0", b"00", b"NaN", b"Infinity",
    b"-Infinity", b"true", b"false", b"null", b'""', b'"a"', b'"F4"', b'"F6_E2M3"', b'"BOOL"',
    b'"C64"', b'"F64"', b'"BF16"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"',
    b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"../x"', b'"/"', b'"model.safetensors"',
    b"[]", b"{}", b"[0,0]", b"[[]]", b'{"a":{}}', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n",
    b"\0", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"[" * 300, b"9" * 5000,
]  # fmt: skip

LENGTHS = [0, 1, 2, 7, 8, 255, 4096, 99_999_999, 100_000_000, 100_000_001, 1 << 31, 1 << 32,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]  # fmt: skip


def damage_bytes(raw: bytes, chooser: random.Random) -> bytes:
    """One change to the bytes, whatever they mean."""
    data = bytearray(raw)
    kind = chooser.randrange(7)
    position = chooser.randrange(len(data) + 1)
    length = min(chooser.choice([1, 1, 2, 8, 40]), len(data) - position)
    if kind == 0 and length:
        data[position] ^= 1 << chooser.randrange(8)
    elif kind == 1 and length:
        data[position] = chooser.randrange(256)
    elif kind == 2:
        del data[position : position + length]
    elif kind == 3:
        data[position:position] = data[position : position + length]
    elif kind == 4:
        data[position:position] = chooser.randbytes(chooser.randrange(1, 9))
    elif kind == 5:
        del data[position:]
    else:
        other = chooser.randrange(len(data) + 1)
        data[position : position + length] = data[other : other + length]
    return bytes(data)


def damage_json(raw: bytes, chooser: random.Random) -> bytes:
    """One change to the tokens of a JSON text: replaced, swapped, repeated, removed."""
    tokens = list(TOKENS.finditer(raw))
    if not tokens:
        return damage_bytes(raw, chooser)
    one, other = chooser.choice(tokens), chooser.choice(tokens)
    kind = chooser.randrange(10)
    if kind < 5:
        new = chooser.choice(REPLACEMENTS)
    elif kind < 7:
        new = other[0]
    elif kind == 7:
        new = b""
    elif kind == 8:
        start, end = sorted((one.start(), other.end()))
        return raw[:end] + raw[start:end] + raw[end:]
    else:
        new = re.sub(rb"\d+", lambda m: b"%d" % (int(m[0][:18]) + chooser.choice([-1, 1])), one[0])
    return raw[: one.start()] + new + raw[one.end() :]


def damage_header(raw: bytes, chooser: random.Random) -> bytes:
    """Damage to a safetensors file: mostly to its header, with the length put right or not."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = raw[8 : 8 + length], raw[8 + length :]
    kind = chooser.randrange(10)
    if kind == 0:
        return damage_bytes(raw, chooser)
    if kind == 1:
        return struct.pack("<Q", chooser.choice([*LENGTHS, length - 1, length + 1])) + raw[8:]
    if kind == 2:
        data = chooser.choice([data[:-1], data + b"\0", b"", data[1:], data * 2])
    for _ in range(chooser.choice([1, 1, 1, 2, 3])):
        change = damage_json if chooser.random() < 0.8 else damage_bytes
        header = change(header, chooser)
    return struct.pack("<Q", len(header)) + header + data

"""Damaged checkpoints: refused with our error, or read exactly as safetensors reads them.

Never another exception, a hang, or other tensors. The cases follow from a seed, so that a
failure, which names its seed and number, can be run again alone.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_agrees, entry, reference, safetensors_bytes, tensor_bytes
from mutations import damage_bytes, damage_header, damage_json
from safetensors import SafetensorError

import sllm
from sllm.checkpoint import Checkpoint, read_checkpoint, save, verify
from sllm.errors import CheckpointError, ChecksumError, SllmError

CASES = 1200
SOAK_SEEDS = range(1, 101)

SAMPLE = safetensors_bytes(
    {
        "__metadata__": {"format": "pt", "k": "v"},
        "a": entry("F32", [2, 3], 0, 24),
        "b.é": entry("BF16", [], 24, 26),
        "empty": entry("I64", [0, 5], 26, 26),
        "f4": entry("F4", [2, 2], 26, 28),
        "f6": entry("F6_E3M2", [4], 28, 31),
        "c": entry("U8", [1, 1, 9], 31, 40),
        "d": entry("C64", [2], 40, 56),
    },
    bytes(range(56)),
)

Judge = Callable[[Checkpoint], None]


@contextmanager
def explained(seed: int, number: int) -> Iterator[None]:
    """Name the case in whatever goes wrong with it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}, case {number}")
        raise


def fuzz(
    path: Path,
    changed: Path,
    damage: Callable[[bytes, random.Random], bytes],
    judge: Judge,
    seed: int,
    cases: int,
) -> Counter[str]:
    """Damage one file again and again, read the checkpoint at `path`, judge what was accepted."""
    chooser = random.Random(seed)
    original = changed.read_bytes()
    seen: Counter[str] = Counter()
    for number in range(cases):
        with explained(seed, number):
            changed.write_bytes(damage(original, chooser))
            try:
                checkpoint = read_checkpoint(path)
            except SllmError as error:
                assert isinstance(error, CheckpointError)
                assert str(path) in str(error)
                seen["refused"] += 1
                continue
            judge(checkpoint)
            seen["accepted"] += 1
    changed.write_bytes(original)
    return seen


def fuzz_file(directory: Path, seed: int, cases: int) -> Counter[str]:
    path = directory / "x.safetensors"
    path.write_bytes(SAMPLE)
    return fuzz(path, path, damage_header, assert_agrees, seed, cases)


def test_damaged_files(tmp_path: Path) -> None:
    seen = fuzz_file(tmp_path, 0, 2 * CASES)
    assert seen["refused"] > CASES  # both happen, or the damage is no test
    assert seen["accepted"] > CASES // 20


def test_what_safetensors_accepts_is_refused_for_known_reasons_only() -> None:
    """The other direction, so that strictness does not cost anybody a sound model."""
    chooser = random.Random(5)
    reasons: Counter[str] = Counter()
    for number in range(CASES):
        with explained(5, number):
            raw = damage_header(SAMPLE, chooser)
            try:
                reference(raw)
            except SafetensorError:
                continue
            reasons[refusal(raw)] += 1
    assert reasons[""] > CASES // 20
    known = ("duplicate name", "begin with '{'", "its entry", "unknown dtype", "larger than any")
    assert not [reason for reason in reasons if reason and not reason.startswith(known)]


def refusal(raw: bytes) -> str:
    """Why we refuse a file; empty if we do not."""
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(raw)
        file.flush()
        try:
            read_checkpoint(file.name)
        except CheckpointError as error:
            return re.sub("^the header (is not valid JSON: |does not )", "", str(error))
    return ""


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two unprepared shards with an index."""
    directory = tmp_path / "sharded"
    directory.mkdir()
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        header = {f"{number}.{n}": entry("U8", [4], 4 * n, 4 * n + 4) for n in range(3)}
        (directory / name).write_bytes(safetensors_bytes(header, bytes(12)))
        weight_map |= dict.fromkeys(header, name)
    index = {"metadata": {"total_size": 24}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def fuzz_index(directory: Path, seed: int, cases: int) -> Counter[str]:
    whole = tensor_bytes(read_checkpoint(directory))

    def judge(checkpoint: Checkpoint) -> None:
        assert_agrees(checkpoint)
        assert tensor_bytes(checkpoint).items() <= whole.items()
        index = json.loads((directory / "model.safetensors.index.json").read_bytes())
        for name, file in index["weight_map"].items():
            assert checkpoint.tensors[name].file == file

    def damage(raw: bytes, chooser: random.Random) -> bytes:
        return (damage_json if chooser.random() < 0.8 else damage_bytes)(raw, chooser)

    index = directory / "model.safetensors.index.json"
    return fuzz(directory, index, damage, judge, seed, cases)


def test_damaged_indexes(sharded: Path) -> None:
    seen = fuzz_index(sharded, 0, CASES)
    assert seen["refused"] > CASES // 3
    assert seen["accepted"] > CASES // 50


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared model of two files with a tie, views and memory that only views use."""
    weight, memory = torch.arange(120, dtype=torch.int32).reshape(10, 12), torch.arange(30)
    state = {
        "embed": weight,
        "head": weight,
        "rows": weight[2:5].t(),
        "bytes": weight.view(torch.uint8)[1:],
        "left": memory[:20],
        "right": memory[10:],
        "norm": torch.ones(33, dtype=torch.bfloat16),
    }
    save(state, tmp_path / "prepared", max_shard_size=600)
    return tmp_path / "prepared"


def fuzz_manifest(directory: Path, seed: int, cases: int) -> Counter[str]:
    """The bytes as they are: whatever is accepted must be the very same model."""
    original = read_checkpoint(directory)

    def judge(checkpoint: Checkpoint) -> None:
        assert checkpoint == original

    def damage(raw: bytes, chooser: random.Random) -> bytes:
        return (damage_json if chooser.random() < 0.5 else damage_bytes)(raw, chooser)

    return fuzz(directory, directory / "sllm.json", damage, judge, seed, cases)


def sign(raw: bytes) -> bytes:
    """Put the manifest's own checksum right, where there still is one."""
    unsigned = re.sub(rb'"crc32:[0-9a-f]{8}"', b'"crc32:00000000"', raw, count=1)
    return unsigned.replace(b"crc32:00000000", b"crc32:%08x" % zlib.crc32(unsigned), 1)


def fuzz_signed_manifest(directory: Path, seed: int, cases: int) -> Counter[str]:
    """As an attacker would: stored tensors stay what they are, views stay within them."""
    original = tensor_bytes(read_checkpoint(directory))

    def judge(checkpoint: Checkpoint) -> None:
        assert tensor_bytes(checkpoint).items() <= original.items()
        for name, tensor in sllm.load(directory).items():
            if name in checkpoint.views and tensor.numel() < 10_000:
                tensor.clone()  # every element is there to be read

    def damage(raw: bytes, chooser: random.Random) -> bytes:
        # What comes after the files' checksums: the tensor table and the views.
        start = raw.index(b'"tensors": {') if chooser.random() < 0.7 else 0
        return sign(raw[:start] + damage_json(raw[start:], chooser))

    return fuzz(directory, directory / "sllm.json", damage, judge, seed, cases)


def fuzz_prepared_data(directory: Path, seed: int, cases: int) -> Counter[str]:
    """Damage to a data file: refused, or the same tensors; `verify` finds what reading cannot."""
    original = read_checkpoint(directory)
    path = next(iter(original.files.values())).path
    sound = path.read_bytes()

    def judge(checkpoint: Checkpoint) -> None:
        assert checkpoint.tensors == original.tensors
        assert checkpoint.views == original.views
        if path.read_bytes() == sound:
            verify(directory)
        else:
            with pytest.raises(ChecksumError):
                verify(directory)

    def damage(raw: bytes, chooser: random.Random) -> bytes:
        if chooser.random() < 0.5:
            return damage_header(raw, chooser)
        changed = bytearray(raw)
        changed[chooser.randrange(len(raw))] ^= 1 << chooser.randrange(8)
        return bytes(changed)

    return fuzz(directory, path, damage, judge, seed, cases)


def test_damaged_manifests(prepared: Path) -> None:
    assert fuzz_manifest(prepared, 0, CASES)["refused"] > CASES * 9 // 10


def test_forged_manifests(prepared: Path) -> None:
    seen = fuzz_signed_manifest(prepared, 0, CASES)
    assert seen["refused"] > CASES // 2
    assert seen["accepted"] > CASES // 100


def test_damaged_prepared_files(prepared: Path) -> None:
    seen = fuzz_prepared_data(prepared, 0, CASES)
    assert seen["refused"] > CASES // 4
    assert seen["accepted"] > CASES // 20


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK_SEEDS)
def test_long(seed: int, tmp_path: Path, sharded: Path, prepared: Path) -> None:
    fuzz_file(tmp_path, seed, 20_000)
    fuzz_index(sharded, seed, 3_000)
    fuzz_manifest(prepared, seed, 3_000)
    fuzz_signed_manifest(prepared, seed, 6_000)
    fuzz_prepared_data(prepared, seed, 3_000)
    shutil.rmtree(prepared)

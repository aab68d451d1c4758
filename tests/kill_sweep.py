"""Runs `convert` again and again, killed with SIGKILL each time at another line of our code.

Started by test_checkpoint_killed.py as a process of its own, because it forks. After each kill it
checks what lies on the disk, and prints one JSON line with what it saw.

Arguments: work directory, number of kills, seed, "exchange" or "aside".
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from sllm.checkpoint import convert, read_checkpoint, staging, verify
from sllm.errors import CheckpointError

STAGING = str(Path(staging.__file__))
OURS = str(Path(STAGING).parent)


def count_lines(limit: int, where: str) -> list[int]:
    """Count executed lines of files whose path starts with `where`; at the `limit`-th, die."""
    counter = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(where):
            return None
        if event == "line":
            counter[0] += 1
            if counter[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    return counter


def content(path: Path) -> dict[str, bytes]:
    """Bytes of every tensor, after checking every checksum."""
    verify(path)
    checkpoint = read_checkpoint(path)
    raw = {name: file.path.read_bytes() for name, file in checkpoint.files.items()}
    return {t.name: raw[t.file][t.offset : t.end] for t in checkpoint.tensors.values()}


def killed_run(source: Path, out: Path, limit: int, where: str) -> bool:
    """Convert in a child that dies at its `limit`-th line; False if it finished before."""
    child = os.fork()
    if child == 0:
        count_lines(limit, where)
        convert(source, out, overwrite=True, max_shard_size=2000)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return False


def check(work: Path, out: Path, old: dict[str, bytes] | None, new: dict[str, bytes]) -> str:
    """What lies there after a kill: the old model, the new one, or (if there was none) nothing."""
    for path in work.iterdir():
        if path not in (out, work / "one", work / "two"):
            assert path.name.startswith("."), path
            try:
                read_checkpoint(path)
            except CheckpointError:
                continue
            raise AssertionError(f"{path} loads")
    if not out.exists():
        return "nothing"
    found = content(out)
    assert found in (old, new), "a partial model"
    return "new" if found == new else "old"


def main(work: Path, kills: int, seed: int, mode: str) -> None:
    if mode == "aside":
        staging._exchange = lambda one, other: False
    out = work / "out"
    sources = [work / "one", work / "two"]
    contents = [content(source) for source in sources]
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote
    chooser = random.Random(seed)
    points: list[tuple[int, str]] = []
    for where in (STAGING, OURS):
        convert(sources[0], out, overwrite=True, max_shard_size=2000)
        counter = count_lines(-1, where)
        convert(sources[1], out, overwrite=True, max_shard_size=2000)
        sys.settrace(None)
        # Each line of the code that changes names, and lines anywhere.
        every = where == STAGING
        somewhere = chooser.sample(range(1, counter[0]), min(kills, counter[0] - 1))
        limits = range(1, counter[0] + 40) if every else somewhere
        points += [(limit, where) for limit in limits]
    seen: Counter[str] = Counter()
    old: dict[str, bytes] | None = contents[1]
    for number, (limit, where) in enumerate(points):
        which = number % 2
        if where == OURS and number % 3 == 2 and out.exists():  # sometimes nothing to replace
            out.rename(work / ".gone")
            for path in (work / ".gone").iterdir():
                path.unlink()
            (work / ".gone").rmdir()
            old = None
        died = killed_run(sources[which], out, limit, where)
        result = check(work, out, old, contents[which])
        if result == "nothing" and old is not None:
            # Only where the kernel cannot exchange: the old one waits to be put back.
            assert mode == "aside"
            staging.clean_leftovers(out)
            assert content(out) == old
            result = "put back"
        seen[result if died else "finished"] += 1
        if out.exists():
            old = content(out)
    convert(sources[0], out, overwrite=True)
    assert content(out) == contents[0]
    assert {path.name for path in work.iterdir()} == {"one", "two", "out"}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

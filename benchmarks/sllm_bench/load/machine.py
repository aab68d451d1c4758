"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def describe(directory: Path) -> dict[str, Any]:
    """Kernel, processor, memory, and the file system and block device below `directory`."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": _word(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": load_average(),
        "storage": storage(directory),
    }


def load_average() -> float:
    """Processes that ran or wanted to, on average over the last minute."""
    return os.getloadavg()[0]


def storage(directory: Path) -> dict[str, Any]:
    """File system type, mount point and options, and the block device if there is one."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    found: dict[str, Any] = {"file_system": "unknown"}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if fields[2] == number:
            kind, source = right.split()[:2]
            found = {
                "file_system": kind,
                "mount_point": fields[4],
                "options": fields[5],
                "source": source,
            }
    return found | _block_device(number)


def _block_device(number: str) -> dict[str, Any]:
    folder = Path("/sys/dev/block", number)
    if not folder.exists():
        return {}
    folder = folder.resolve()
    queue = folder / "queue" if (folder / "queue").is_dir() else folder.parent / "queue"
    found: dict[str, Any] = {"device": folder.name}
    for key, path in (
        ("scheduler", queue / "scheduler"),
        ("rotational", queue / "rotational"),
        ("max_kilobytes_per_request", queue / "max_sectors_kb"),
        ("model", queue.parent / "device" / "model"),
        ("backing_file", folder / "loop" / "backing_file"),
    ):
        if path.is_file():
            text = path.read_text().strip()
            found[key] = _chosen(text) if key == "scheduler" else text
    return found


def _chosen(text: str) -> str:
    """The word in brackets, as sysfs marks a choice."""
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else text


def _word(path: Path) -> str | None:
    return _chosen(path.read_text().strip()) if path.is_file() else None


def _field(path: Path, name: str) -> str | None:
    if not path.is_file():
        return None
    with path.open() as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None

"""A directory that appears whole or not at all.

It is written beside its destination under a hidden name, synced, and renamed. Where the
kernel can exchange two names at once (renameat2), replacing a directory is one step too;
elsewhere the old one is moved aside first, and a run that is killed in between leaves it
there for the next run to move back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sllm.checkpoint.files import list_directory
from sllm.checkpoint.locate import MARKER, UNFINISHED
from sllm.errors import CheckpointError

logger = logging.getLogger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staged(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new directory to write into: it becomes `destination`, or on any error is removed.

    Also removes what killed runs for the same destination left behind.

    Args:
        destination: an absolute path, links resolved.
        overwrite: replace a model that is there.

    Raises:
        CheckpointError: the destination exists (and is not to be overwritten, or is no model),
            or cannot be written.
    """
    with _write_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(destination)
    _check_destination(destination, overwrite)
    new, lock = _create(destination)
    try:
        with _write_errors(destination):
            yield new
            sync_tree(new)
            (new / MARKER).unlink()
            sync_directory(new)
            _commit(new, destination, overwrite)
    finally:
        # After a successful exchange this name holds the old directory.
        remove(new)
        os.close(lock)


def _check_destination(destination: Path, overwrite: bool) -> None:
    if not os.path.lexists(destination):
        return
    if not destination.is_dir():
        raise CheckpointError("a file is in the way", path=destination, hint="choose another name")
    names = list_directory(destination)
    if not names:
        return
    if not overwrite:
        raise CheckpointError(
            "the directory exists",
            path=destination,
            hint="choose another name, or pass overwrite (--overwrite) to replace it",
        )
    if not any(
        name == "config.json" or name.endswith((".safetensors", "sllm.json")) for name in names
    ):
        raise CheckpointError(
            "this directory holds no model; it will not be replaced",
            path=destination,
            hint="choose another name, or remove the directory yourself",
        )


def _create(destination: Path) -> tuple[Path, int]:
    """A fresh directory with its marker, locked so that no other run takes it for a leftover."""
    while True:
        new = destination.with_name(f".{destination.name}.sllm-new-{secrets.token_hex(4)}")
        with _write_errors(destination):
            new.mkdir()
            try:
                lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with suppress(OSError):  # some network file systems cannot lock: then nobody cleans up
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Between mkdir and lock another run may have cleaned it up.
            if os.fstat(lock).st_nlink == 0 or not new.exists():
                os.close(lock)
                continue
            (new / MARKER).touch()
            return new, lock


def _commit(new: Path, destination: Path, overwrite: bool) -> None:
    while True:
        if overwrite and destination.is_dir() and list_directory(destination):
            _replace(new, destination)
            break
        try:
            new.rename(destination)
            break
        except OSError as error:
            # Another run came first. To be overwritten means by us, if we end last.
            if not overwrite or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    sync_directory(destination.parent)


def _replace(new: Path, destination: Path) -> None:
    if _exchange(new, destination):
        return
    old = destination.with_name(new.name.replace(".sllm-new-", ".sllm-old-"))
    destination.rename(old)
    try:
        new.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    sync_directory(destination.parent)
    remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where kernel, C library or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    code = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def clean_leftovers(destination: Path) -> None:
    """Put back or remove what killed runs for this destination left beside it."""
    prefix = f".{destination.name}.sllm-"
    with suppress(OSError):
        # Old models first: whether one is to be put back shows in the new one beside it.
        for leftover in sorted(destination.parent.iterdir(), reverse=True):
            name = leftover.name
            if name.startswith(prefix) and UNFINISHED.match(name) is not None:
                with _abandoned(leftover) as abandoned:
                    if abandoned:
                        _clean(leftover, destination)


def _clean(leftover: Path, destination: Path) -> None:
    # Killed between the two renames: the new model has not left. Otherwise the old one had been
    # replaced, and if its place is empty now, somebody wanted that.
    successor = leftover.with_name(leftover.name.replace(".sllm-old-", ".sllm-new-"))
    replaced = successor == leftover or not successor.exists()
    if not replaced and not os.path.lexists(destination):
        logger.warning("putting %s back: a run was killed while replacing it", destination)
        leftover.rename(destination)
    else:
        remove(leftover)


@contextmanager
def _abandoned(directory: Path) -> Iterator[bool]:
    """Whether the process that wrote it is gone, its lock with it; ours for the time being."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def remove(directory: Path) -> None:
    """Remove a directory tree; marked first, so that a part of it is never taken for a model."""
    if not directory.exists():
        return
    with suppress(OSError):
        (directory / MARKER).touch()
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        logger.warning("%s could not be removed completely", directory)


def sync_tree(directory: Path) -> None:
    """fsync every file and directory below, innermost first."""
    for root, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_file(Path(root) / name)
        sync_directory(Path(root))


def sync_file(path: Path) -> None:
    """fsync one file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """fsync the names in a directory; some file systems cannot, and then need not."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _write_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        hint = {
            errno.ENOSPC: "free space on the disk; what was there before is untouched",
            errno.EDQUOT: "your quota is used up; what was there before is untouched",
            errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose a smaller "
            "max_shard_size",
            errno.EACCES: "choose a directory you may write to",
            errno.EROFS: "choose a directory on a file system that can be written",
            errno.EBUSY: "a mount point cannot be replaced: choose a directory inside it",
            errno.ENOTEMPTY: "another run wrote the same directory meanwhile",
            errno.EEXIST: "another run wrote the same directory meanwhile",
        }.get(number, "nothing was changed")
        raise CheckpointError(
            f"cannot be written: {os.strerror(number)}",
            path=error.filename or destination,
            hint=hint,
        ) from error

"""One run a folder at a time, held by the operating system: a killed process holds nothing."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from cdkit.errors import CdkitError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file while the block runs; a CdkitError names who holds it already."""
    lock = take(path)
    holder = _holder(path)
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()


def lock_of(path: Path) -> Path:
    """The lock file of a file: beside it, because a lock keeps other systems from reading it."""
    return path.with_name(f".{path.name}.lock")


def take(path: Path) -> BaseFileLock:
    """The lock of a lock file, until it is released or this process ends."""
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CdkitError(
            f"{path.parent} is being written by {_named(path)}: wait until it has ended, or give "
            "another --name"
        ) from None
    return lock


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _named(path: Path) -> str:
    try:
        line = _holder(path).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return "another process"
    return line if line.startswith("process ") else "another process"

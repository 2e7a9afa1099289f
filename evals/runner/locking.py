"""One run a folder at a time, held by the operating system: a killed process holds nothing."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdkit.errors import CdkitError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file while the block runs; a CdkitError names who holds it already."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        take(file, path)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def take(file: int, path: Path) -> None:
    """The lock of an open file, until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        content = os.pread(file, 200, 0).split(b"\n")[0].decode("utf-8", "replace")
        holder = content if content.startswith("process ") else "another process"
        raise CdkitError(
            f"{path.parent} is being written by {holder}: wait until it has ended, or give "
            "another --name"
        ) from None

"""What a file is, byte by byte, and whether an image opens: nothing here trusts what it reads."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cdkit.errors import CdkitError, check_file
from cdkit.evals.data.catalogue import KnownFile, known_files
from cdkit.evals.runner.pictures import BOMBS, load_picture, opened
from cdkit.interfaces.sample import Sample

FEW = 3
"""Names that are given as examples where many have one fault."""

_CHUNK = 2**20


@dataclass(frozen=True)
class FileFound:
    """A benchmark's file: its size and hash, and which published file it is, if a known one.

    `oddities` are what a Windows editor leaves: a byte order mark, CRLF line ends. They are read
    all the same, but change the hash.
    """

    path: str
    bytes: int
    sha256: str
    known: KnownFile | None
    oddities: tuple[str, ...]


def examine(path: Path, name: str) -> FileFound:
    """The file read once in pieces, however large; `name` is how to call it."""
    digest, size, start, crlf, last = hashlib.sha256(), 0, b"", False, b""
    check_file(path)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            start = start or piece[:3]
            crlf = crlf or b"\r\n" in last + piece
            digest.update(piece)
            size, last = size + len(piece), piece[-1:]
    oddities = []
    if start == b"\xef\xbb\xbf":
        oddities.append("byte order mark")
    if crlf and path.suffix != ".gz":
        oddities.append("CRLF line ends")
    sha256 = digest.hexdigest()
    return FileFound(name, size, sha256, known_files().get(sha256), tuple(oddities))


@dataclass(frozen=True)
class ImagesFound:
    """The images that a part refers to: how many, and what is wrong with how many of them.

    `wrong` maps a fault to the names that have it, in the questions' order.
    """

    folder: str
    referenced: int
    wrong: Mapping[str, Sequence[str]]


def examine_images(
    samples: Sequence[Sample], folder: Path, *, decode: bool, seen: dict[Path, str]
) -> ImagesFound:
    """Every image that the samples name: is it there, inside the folder, and does it open?

    `decode` reads every pixel, else only the head of the file is read. `seen` remembers the fault
    of each image looked at ("" for none), for other parts that share it.
    """
    by_name = {sample.image: sample for sample in samples}
    wrong: dict[str, list[str]] = {}
    for name, sample in by_name.items():
        path = folder / name
        if path not in seen:
            seen[path] = _fault(sample, folder, decode)
        if seen[path]:
            wrong.setdefault(seen[path], []).append(name)
    return ImagesFound(str(folder), len(by_name), wrong)


def _fault(sample: Sample, folder: Path, decode: bool) -> str:
    try:
        if not (folder / sample.image).is_file():
            return "missing"
        path = sample.image_in(folder)
    except OSError:  # a name that no file system takes
        return "missing"
    except CdkitError:
        return "links out of the image folder"
    try:
        with opened(path):
            pass
        if decode:
            load_picture(path)
    except BOMBS:
        return f"too large: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except (UnidentifiedImageError, CdkitError, OSError, SyntaxError, ValueError):
        return "unreadable"
    return ""

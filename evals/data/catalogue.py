"""Files of benchmarks as they were published, by the SHA-256 of their bytes."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class KnownFile:
    """A published file: its benchmark, what it is, how many rows it has, where it stands.

    `rows` are questions, annotations or lines; `source` names a repository, a commit and a path.
    """

    benchmark: str
    what: str
    rows: int
    sha256: str
    source: str

    def __str__(self) -> str:
        return f"{self.benchmark} {self.what}, {self.rows:,} rows ({self.source.split()[0]})"


@cache
def known_files() -> Mapping[str, KnownFile]:
    """Every published file that is known, by its hash."""
    text = (resources.files("cdkit.evals.data") / "known.toml").read_text("utf-8")
    files = [KnownFile(**row) for row in tomllib.loads(text)["file"]]
    found = {file.sha256: file for file in files}
    if len(found) < len(files):
        raise ValueError("known.toml names a hash twice")
    return found

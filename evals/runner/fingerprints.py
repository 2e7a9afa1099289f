"""Hashes of the questions, of the method and of the model: the keys of a journal's rows."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.methods.method import Method

DIGITS = 16
"""Hexadecimal digits of a hash: enough against accidents, not against forgery."""
WORDS = ("name", "summary", "source")
"""Keys of a method that describe it and change no answer."""


@runtime_checkable
class RunPart(Protocol):
    """A benchmark of a run, and the folder that its images are in."""

    @property
    def name(self) -> str: ...
    @property
    def benchmark(self) -> Benchmark: ...
    @property
    def images(self) -> Path: ...


def short_hash(value: object) -> str:
    """The hash of plain data; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def method_hash(method: Method) -> str:
    """The hash of a method, without its name and description."""
    return short_hash({k: v for k, v in method.to_dict().items() if k not in WORDS})


def data_hash(benchmark: Benchmark) -> str:
    """The hash of everything that a model is asked, and of the content of the benchmark's files.

    Images count by their names. Parsers change no answer and are left out.
    """
    asked = [(s.id, s.image, s.prompt, s.target) for s in benchmark.samples()]
    files = sorted(benchmark.sources().values())
    kind = BENCHMARKS.name_of(type(benchmark))
    return short_hash([kind, benchmark.max_new_tokens, files, asked])


def model_files(path: str) -> dict[str, str]:
    """The SHA-256 of a local checkpoint's weights; nothing for a model from the hub."""
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return {file.name: _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: what they were, and are; None stands for none."""
    keys = dict.fromkeys((*before, *now))
    pairs = {key: (before.get(key), now.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

"""What a journal's rows are keyed by: hashes of the questions, of the method and of the model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.methods.method import Method

DIGITS = 16
"""Of a hash in hexadecimal: enough for keys that nobody forges."""
WORDS = ("name", "summary", "source")
"""Of a method: what tells about it and changes no answer."""


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
    """Of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def method_hash(method: Method) -> str:
    """Equal for methods that compute the same, whatever they are called."""
    return short_hash({k: v for k, v in method.to_dict().items() if k not in WORDS})


def data_hash(benchmark: Benchmark) -> str:
    """Of everything that a model is asked, and of the files that it comes from, by content.

    Images are told by their names, and parsers, which change no answer, are left out.
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

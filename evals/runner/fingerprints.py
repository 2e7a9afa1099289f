"""Hashes of the questions, of the method and of the model: the keys of a journal's rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers.utils.hub import cached_file, extract_commit_hash

from cdkit.evals.benchmarks.benchmark_files import digest
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.methods.method import Method

DIGITS = 16
"""Hexadecimal digits of a hash: enough against accidents, not against forgery."""
SAFE = ".safetensors"
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".jsonl")
"""Suffixes of configs, processors, tokenizers and chat templates."""
LEFTOVERS = frozenset(
    (
        "training_args.bin",
        "trainer_state.json",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
        "requirements.txt",
        "LICENSE.txt",
    )
)
"""Files of a checkpoint's folder that no loading reads."""
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
    """The hash of a method, without its name and description; a file counts by its content."""
    told = method.with_parts(_by_content).to_dict()
    return short_hash({k: v for k, v in told.items() if k not in WORDS})


def _by_content(place: str, part: Any) -> Any:
    """The part with the SHA-256 of its files in the place of their paths."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    files = {k: Path(digest(v)) for k, v in values.items() if isinstance(v, Path)}
    return replace(part, **files) if files else part


def data_hash(benchmark: Benchmark) -> str:
    """The hash of everything that a model is asked, and of the content of the benchmark's files.

    Images count by their names. Parsers change no answer and are left out.
    """
    asked = [(s.id, s.image, s.prompt, s.target) for s in benchmark.samples()]
    files = sorted(benchmark.sources().values())
    kind = BENCHMARKS.name_of(type(benchmark))
    return short_hash([kind, benchmark.max_new_tokens, files, asked])


def model_files(path: str, revision: str | None = None) -> dict[str, str]:
    """What identifies a model: all that decides its answers, by content.

    Args:
        path: A checkpoint's folder, or a name on the hub.
        revision: The revision asked for of a model on the hub.

    Returns:
        File -> SHA-256, of a folder's weights, configs, processor, tokenizer and chat templates
        (and of the base model of an adapter's folder). Of a model on the hub "revision" -> commit;
        nothing where the commit cannot be learnt.
    """
    folder = Path(path)
    if not folder.is_dir():
        commit = _commit(path, revision)
        return {} if commit is None else {"revision": commit}
    found = {file.relative_to(folder).as_posix(): _sha256(file) for file in _deciding(folder)}
    base = base_model(folder)
    more = {} if base is None else model_files(base)
    return found | {f"base model: {name}": value for name, value in more.items()}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """The names under which two models differ, as `model_files` describes them.

    Older runs hold the hashes of *.safetensors alone, and nothing of a model from the hub: beside
    such a one only what both hold counts.
    """
    if not before:
        return ()
    if any(files and all(name.endswith(SAFE) for name in files) for files in (before, now)):
        before, now = (
            {name: value for name, value in files.items() if name.endswith(SAFE)}
            for files in (before, now)
        )
    return tuple(differing(before, now))


def _deciding(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.is_file() and file.name not in LEFTOVERS]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    safe = any(file.suffix == SAFE for file in files)
    read = {SAFE, *TEXTS} if safe else {".bin", *TEXTS}  # .bin is read where there is no other
    return sorted(file for file in files if file.suffix in read)


def base_model(folder: Path) -> str | None:
    """The model that an adapter's folder was tuned from."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) and base and Path(base) != folder else None


def _commit(name: str, revision: str | None) -> str | None:
    try:
        file = cached_file(name, "config.json", revision=revision or "main")
    except (OSError, ValueError):
        return None  # loading it says why
    return extract_commit_hash(file, None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: what they were, and are; None stands for none."""
    keys = dict.fromkeys((*before, *now))
    pairs = {key: (before.get(key), now.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

"""The files of a repository for `generate(custom_generate=...)`: code, requirements, model card."""

import dataclasses
import functools
import importlib.metadata
import inspect
import pprint
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import transformers

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered
from cdkit.generation.call_compatibility import MODE_ARGUMENTS
from cdkit.interfaces.part import Part
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of

hf: Any = transformers  # much of it is not typed
OF_ATTACH = ("processor", "seed", "sample_ids")
"""Arguments of `cdkit.attach` that a call of `generate` may give."""
OF_DOWNLOAD = (
    *("cache_dir", "force_download", "local_files_only", "proxies"),
    *("repo_type", "revision", "subfolder", "token"),
)
"""Arguments that transformers reads to find the repository, and hands on to its function, too."""
BOUNDED = ("torch", "transformers")
"""The packages whose ranges the repository states beside cdkit's; pip finds the others."""

CODE = '''\
"""A decoding method of cdkit for `generate(custom_generate=...)`.

Written by `cdkit export-hub`; README.md says what it does and how to call it.
"""

import cdkit

METHOD = {method}

# What a call may set by a plain name. A dotted name, such as "combiner.alpha", sets the same.
PARAMETERS = {parameters}

# transformers finds this file by these, and hands them on; the model's generate takes none of them.
OF_DOWNLOAD = {of_download}


def generate(model, processor=None, seed=0, sample_ids=None, **arguments):
    """Run the model's own generate with the method attached, for this one call.

    Args:
        model: The model whose `generate` was called.
        processor: Its processor; methods that write text into the prompt need it.
        seed: All noise is drawn from (seed, sample id).
        sample_ids: A name for each prompt; by default a digest of its pixels and tokens.
        arguments: All other arguments of the call; those in PARAMETERS change the method.

    Returns:
        What the model's `generate` returns.
    """
    names = [name for name in arguments if name in PARAMETERS or "." in name]
    method = cdkit.load(METHOD, **{{name: arguments.pop(name) for name in names}})
    given = {{name: value for name, value in arguments.items() if name not in OF_DOWNLOAD}}
    with cdkit.attach(model, method, processor=processor, seed=seed, sample_ids=sample_ids):
        return model.generate(**given)
'''


@dataclasses.dataclass(frozen=True)
class CallParameter:
    """A parameter of the method, as a call of `generate` sets it."""

    name: str
    """Its own name; a dotted one where `generate` has that name, or where two parts have it."""
    value: str
    """Its value, as Python writes it; the kind of one that is a part."""
    part: str
    """The kind of the part whose parameter it is."""


def write_repository(method: Method, folder: Path) -> None:
    """Write the repository of a method.

    Args:
        method: The method. What it lacks, such as a file, the call must give.
        folder: Where to write: a folder that is not there yet, or an empty one.

    Raises:
        CdkitError: The folder is not empty, the method reads a file, or one of its parts is in no
            installed package, so that no one else could load it.
    """
    files = repository(method)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CdkitError(f"{folder} is there and not an empty folder: name a new one")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def repository(method: Method) -> dict[str, str]:
    """The text of each file of the repository, by its place; raises as `write_repository` does."""
    _refuse_files(method)
    needed = requirements(method)
    return {
        "README.md": model_card(method, needed),
        "custom_generate/generate.py": code(method),
        "custom_generate/requirements.txt": "".join(f"{line}\n" for line in needed),
    }


def code(method: Method) -> str:
    """The Python that transformers runs, with the method in it as data."""
    plain = sorted({name for *_, name, _ in _fields(method)} - taken_names())
    return CODE.format(
        method=pprint.pformat(method.to_dict(), width=96, sort_dicts=False),
        parameters=pprint.pformat(tuple(plain), width=80, compact=True),
        of_download=pprint.pformat(OF_DOWNLOAD, width=80, compact=True),
    )


def model_card(method: Method, needed: Sequence[str]) -> str:
    """The page that the hub shows: how to call the method, what it does, its papers."""
    return rendered(
        "model_card.md",
        filters={},
        entry=listing.method_entry(method),
        parameters=call_parameters(method),
        requirements=needed,
        defined=[MODE_ARGUMENTS[mode] for mode in method.modes],
        any_mode=len(method.modes) == len(MODE_ARGUMENTS),
    )


def requirements(method: Method) -> tuple[str, ...]:
    """What must be installed, a comparison a line: transformers reads no second one in a line."""
    major, minor, *_ = map(int, re.findall(r"\d+", cdkit.__version__))
    ends = f"0.{minor + 1}" if major == 0 else f"{major + 1}"
    found = [f"cdkit>={cdkit.__version__}", f"cdkit<{ends}"]
    for line in importlib.metadata.requires("cdkit") or ():
        name, ranges = re.match(r"([\w-]+)([^;]*)", line).groups()  # type: ignore[union-attr]
        if name in BOUNDED and "extra" not in line:
            found += sorted((f"{name}{each.strip()}" for each in ranges.split(",")), reverse=True)
    return (*found, *_other_packages(method))


def _other_packages(method: Method) -> Iterator[str]:
    """The installed packages other than cdkit whose classes are parts of the method."""
    kinds = {type(part).__module__.split(".")[0]: kind_of(part) for _, part in method.parts()}
    kinds.pop("cdkit", None)
    holders = importlib.metadata.packages_distributions() if kinds else {}
    for package, kind in kinds.items():
        if package not in holders:
            raise CdkitError(
                f"{kind} of {method.name} is a class of {package}, which no installed package "
                "holds, so no one else could load it: put it into a package with an entry point "
                "(docs/own_strategy.md)"
            )
        holder = holders[package][0]
        yield f"{holder}>={importlib.metadata.version(holder)}"


def call_parameters(method: Method) -> tuple[CallParameter, ...]:
    """Every parameter of the method's parts, by the name that a call of `generate` uses."""
    taken, times = taken_names(), Counter(name for *_, name, _ in _fields(method))
    return tuple(
        CallParameter(
            f"{place}.{name}" if name in taken or times[name] > 1 else name,
            kind_of(value) if isinstance(value, Part) else repr(value),
            kind,
        )
        for place, kind, name, value in _fields(method)
    )


@functools.cache
def taken_names() -> Set[str]:
    """Names that mean something else in a call of `generate`."""
    return {
        *inspect.signature(hf.GenerationMixin.generate).parameters,
        *hf.GenerationConfig().to_dict(),
        *("tokenizer", "assistant_tokenizer", "trust_remote_code", "model"),
        *OF_ATTACH,
        *OF_DOWNLOAD,
    }


def _fields(method: Method) -> Iterator[tuple[str, str, str, Any]]:
    """(place, kind, name, value) of every parameter of every part."""
    for place, part in method.parts():
        for field in dataclasses.fields(part):
            yield place, kind_of(part), field.name, getattr(part, field.name)


def _refuse_files(method: Method) -> None:
    """Raise where the method reads a file: transformers fetches Python files alone."""
    for *_, name, value in _fields(method):
        if isinstance(value, Path):
            raise CdkitError(
                f"{method.name} reads the file {value}, and generate(custom_generate=...) fetches "
                f"Python files alone: leave {name} out here, and give {name}=FILE in the call of "
                "generate"
            )

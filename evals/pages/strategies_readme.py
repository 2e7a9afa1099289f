"""strategies/README.md, made from the presets: `python -m cdkit.evals.pages.strategies_readme`."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cdkit
from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.pages.listing import Entry
from cdkit.evals.pages.methods_page import is_control, order, paper_of, presets_of_cdkit

PAGE = Path("strategies/README.md")
COMMAND = "python -m cdkit.evals.pages.strategies_readme"
PACKAGE = "cdkit.strategies"


@dataclass(frozen=True)
class PresetRow:
    """A preset, and the files that it is made of."""

    name: str
    summary: str
    key: str
    """The key of its paper in docs/methods.md; empty where it has none."""
    title: str
    files: tuple[str, ...]
    """Paths from the folder of strategies."""


@dataclass(frozen=True)
class FileRow:
    """A Python file, and the presets that are made of it."""

    path: str
    about: str
    presets: tuple[str, ...]


@dataclass(frozen=True)
class FolderRow:
    """A folder of parts of one kind."""

    name: str
    about: str
    files: tuple[FileRow, ...]


def page() -> str:
    """The page in Markdown: of cdkit's presets, without those that other packages bring."""
    entries = sorted(presets_of_cdkit(), key=order)
    rows = {entry.name: _preset(entry) for entry in entries}
    return rendered(
        "strategies_readme.md",
        filters={"name": lambda path: path.rpartition("/")[2]},
        papers=[rows[e.name] for e in entries if not is_control(e)],
        controls=[rows[e.name] for e in entries if is_control(e)],
        folders=list(_folders([*rows.values()])),
    )


def _preset(entry: Entry) -> PresetRow:
    paper = paper_of(entry)
    parts = (part for _, part in listing.working_parts(cdkit.load(entry.name)))
    return PresetRow(
        name=entry.name,
        summary=entry.summary,
        key=listing.cite_key(paper),
        title=bibtex_title(paper),
        files=tuple(dict.fromkeys(path for part in parts for path in _files_of(part))),
    )


def _files_of(part: Any) -> Iterator[str]:
    """The file of a part's class, then those of the parts that are its fields."""
    module = type(part).__module__
    if module.startswith(f"{PACKAGE}."):
        yield module.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(inner):
                yield from _files_of(inner)


def bibtex_title(bibtex: str) -> str:
    """The title in a BibTeX entry, without its braces; empty where there is none."""
    found = re.search(r"\btitle\s*=\s*\{((?:[^{}]|\{[^{}]*\})*)\}", bibtex)
    return "" if found is None else " ".join(re.sub(r"[{}]", "", found[1]).split())


def _folders(rows: Sequence[PresetRow]) -> Iterator[FolderRow]:
    package = importlib.import_module(PACKAGE)
    for folder in pkgutil.iter_modules(package.__path__):
        if not folder.ispkg:
            continue
        module = importlib.import_module(f"{PACKAGE}.{folder.name}")
        names = [inner.name for inner in pkgutil.iter_modules(module.__path__)]
        files = tuple(_file(folder.name, name, rows) for name in names)
        if files:
            yield FolderRow(folder.name, listing.first_sentence(module), files)


def _file(folder: str, name: str, rows: Sequence[PresetRow]) -> FileRow:
    path = f"{folder}/{name}.py"
    module = importlib.import_module(f"{PACKAGE}.{folder}.{name}")
    users = tuple(row.name for row in rows if path in row.files)
    return FileRow(path, listing.first_sentence(module), users)


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()

"""`cdkit list`: what there is, a line each; with `--cite` formulas, parameters, sources and papers.

All of it is read from the classes and presets: no fact stands here.
"""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import cdkit
from cdkit.evals.protocols.read import packaged, read_protocol
from cdkit.interfaces.model_adapter import GENERIC_ADAPTERS
from cdkit.interfaces.part import Part
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import REGISTRIES, kind_of
from cdkit.methods.presets import broken_presets
from cdkit.registry import Registry


@dataclass(frozen=True)
class PartFacts:
    """A part as `cdkit list --cite` shows it."""

    place: str
    """Where it stands in a method; of a class, what it is."""
    kind: str
    formula: str
    parameters: tuple[tuple[str, str], ...]
    source: str
    bibtex: str


@dataclass(frozen=True)
class Entry:
    """A name and one line about it; more where it is a method or a part of one."""

    name: str
    summary: str
    source: str = ""
    modes: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    parts: tuple[PartFacts, ...] = ()
    papers: tuple[str, ...] = ()
    """BibTeX, each once."""
    lacks: str = ""
    """What a preset needs before it can run, such as a file."""


TOPICS: Mapping[str, tuple[Registry[Any], ...]] = {
    "methods": (),
    "strategies": tuple(r for r in REGISTRIES.values() if r is not cdkit.CALIBRATORS),
    "calibrators": (cdkit.CALIBRATORS,),
    "models": (cdkit.ADAPTERS, GENERIC_ADAPTERS),
    "benchmarks": (cdkit.BENCHMARKS,),
    "protocols": (),
}

LABEL = 15
"""Where the longest label ends, counted from the left edge."""

EMBEDDED = "The embedded model, micro, is a LLaVA checkpoint: the adapter llava."


def entries(topic: str) -> tuple[Entry, ...]:
    """All of one topic, by name; what cannot be had has the reason as its summary."""
    if topic == "methods":
        return tuple(_or_reason(n, partial(_preset_entry, n)) for n in cdkit.presets())
    if topic == "protocols":
        return tuple(_or_reason(n, partial(_protocol_entry, n)) for n in packaged())
    return tuple(
        _or_reason(name, partial(class_entry, name, cls, registry.what))
        for registry in TOPICS[topic]
        for name, cls in registry.items()
    )


def broken(topic: str) -> tuple[str, ...]:
    """The plug-ins of one topic that have no entry, each with its package and the reason."""
    if topic == "methods":
        return broken_presets()
    found = (str(each) for registry in TOPICS[topic] for each in registry.broken)
    return tuple(dict.fromkeys(found))  # registries of one group share their plug-ins


def _or_reason(name: str, make: Callable[[], Entry]) -> Entry:
    try:
        return make()
    except Exception as error:  # another package's class or preset: the others are listed
        words = " ".join(str(error).split())
        return Entry(name, f"cannot be listed ({type(error).__name__}: {words})")


def _preset_entry(name: str) -> Entry:
    return method_entry(cdkit.load(name))


def _protocol_entry(name: str) -> Entry:
    """A protocol with what it sets, for all models and for each that it has a section of."""
    protocol = read_protocol(name)
    parts = [_protocol_facts("all models", protocol.settings(), protocol.methods)]
    for model, section in protocol.models.items():
        settings = {key: value for key, value in section.items() if key != "methods"}
        parts.append(_protocol_facts(model, settings, section.get("methods", {})))
    source = protocol.source
    where = f"{source.repository}, commit {source.commit[:7]}" if source.repository else ""
    return Entry(name, protocol.summary, source=where, parts=tuple(parts))


def _protocol_facts(
    place: str, settings: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> PartFacts:
    numbers = {f"{m}.{key}": v for m, table in methods.items() for key, v in table.items()}
    shown = {
        key: value.name if isinstance(value, Path) else value
        for key, value in {**settings, **numbers}.items()
    }
    parameters = tuple((key, _plain(value)) for key, value in shown.items())
    return PartFacts(place, "", "", parameters, "", "")


def method_entry(method: Method) -> Entry:
    """A method with those of its parts that have something to do."""
    parts = tuple(_facts(part, place) for place, part in working_parts(method))
    return Entry(
        name=method.name,
        summary=method.summary,
        source=method.source,
        modes=method.modes,
        branches=tuple(branch.name for branch in method.live_branches),
        parts=parts,
        papers=_papers(parts),
        lacks=method.lacks,
    )


def working_parts(method: Method) -> Iterator[tuple[str, Any]]:
    """(place, part) of the parts that have something to do."""
    live = {branch.name for branch in method.live_branches}
    dead = {branch.name for branch in method.branches} - live
    for place, part in method.parts():
        where, *inner = place.split(".")
        # A combiner may be the identity without other logits, and work as soon as there are some.
        fed = part is method.combiner and (live or method.readout is not None)
        if where not in dead and (fed or not getattr(part, "is_identity", False)):
            parameter = inner[1:]  # of a part, such as its selector
            yield ", ".join([f"branch {where}" if where in live else where, *parameter]), part


def class_entry(name: str, cls: type, what: str) -> Entry:
    """A registered class with the defaults of its fields; `what` its registry calls it."""
    if issubclass(cls, Part):
        parts = (_facts(cls, what),)
        return Entry(name, first_sentence(cls), parts=parts, papers=_papers(parts))
    bibtex = _dedented(getattr(cls, "bibtex", ""))
    return Entry(name, first_sentence(cls), papers=(bibtex,) if bibtex else ())


def _facts(part: Any, place: str) -> PartFacts:
    """The facts of a part with its values, or of a class with its defaults."""
    cls: type[Any] = part if isinstance(part, type) else type(part)
    return PartFacts(
        place=place,
        kind=kind_of(part) if cls is not part else "",
        formula=cls.formula,
        parameters=tuple(
            (field.name, _default(field) if cls is part else _plain(getattr(part, field.name)))
            for field in dataclasses.fields(cls)
        ),
        source=cls.source,
        bibtex=_dedented(cls.bibtex),
    )


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return "(to be given)"


def _plain(value: Any) -> str:
    """A value much as TOML writes it; a word stands without quotes, as `--set` takes it.

    Of a part, such as a selector, its name: its own parameters are listed with it.
    """
    if isinstance(value, Part):
        return kind_of(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return json.dumps(value, ensure_ascii=False)
    return "none" if value is None else str(value)


def _papers(parts: Sequence[PartFacts]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.bibtex for part in parts if part.bibtex))


def _dedented(bibtex: str) -> str:
    return textwrap.dedent(bibtex).strip()


def first_sentence(documented: type | ModuleType) -> str:
    """The first paragraph of a docstring, in one line."""
    text = inspect.getdoc(documented) or ""
    return " ".join(text.split("\n\n")[0].split())


def cite_key(bibtex: str) -> str:
    """`li2025imccd` of `@misc{li2025imccd, ...`."""
    return bibtex.partition("{")[2].partition(",")[0].strip()


def render(title: str, listed: Sequence[Entry], *, cite: bool) -> RenderableType:
    """A line each; or, to cite, a block each."""
    if cite:
        return Group(Text(title, style="italic"), *map(_block, listed))
    lines = Table(title=title, title_justify="left", box=None, show_header=False)
    lines.add_column(style="bold", no_wrap=True)
    for entry in listed:
        lines.add_row(entry.name, Text(entry.summary))  # Text: brackets are no markup
    return lines


def papers(listed: Sequence[Entry]) -> tuple[str, ...]:
    """The BibTeX of all, each paper once: many share one."""
    return tuple(dict.fromkeys(paper for entry in listed for paper in entry.papers))


def _block(entry: Entry) -> RenderableType:
    blocks: list[RenderableType] = [Text(f"\n{entry.name}", style="bold"), _indented(entry.summary)]
    for part in entry.parts:
        if part.kind:
            blocks.append(_indented(f"{part.place}: {part.kind}", style="bold"))
        rows = (
            ("kind", "" if part.kind else part.place),
            ("formula", part.formula),
            ("parameters", ", ".join(f"{name} = {value}" for name, value in part.parameters)),
            ("source", part.source),
        )
        blocks.append(_labelled(rows, indent=4 if part.kind else 2))
    about = (
        ("before it runs", entry.lacks),
        ("modes", ", ".join(entry.modes)),
        ("values from", entry.source),
        ("cite", ", ".join(map(cite_key, entry.papers))),
    )
    blocks.append(_labelled(about, indent=2))
    return Group(*blocks)


def _indented(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), (0, 0, 0, 2), expand=False)


def _labelled(rows: Sequence[tuple[str, str]], *, indent: int) -> RenderableType:
    """`label  text` rows; those without a text are left out, and a long text hangs."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", min_width=LABEL - indent, no_wrap=True)
    grid.add_column()
    for label, text in rows:
        if text:
            grid.add_row(label, Text(text))
    return Padding(grid, (0, 0, 0, indent), expand=False)

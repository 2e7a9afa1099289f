"""docs/methods.md, made from the presets: `python -m cdkit.evals.pages.methods_page`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import cdkit
from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.pages.listing import Entry, PartFacts
from cdkit.interfaces.decoding_loop import MODES

PAGE = Path("docs/methods.md")
COMMAND = "python -m cdkit.evals.pages.methods_page"
CONSTRAINT = "constraint"
"""The part that methods of many papers have as it is."""
SEVERAL = 3
"""A part that so many methods have is described once on the page."""
CMAC = "li2025imccd"
"""The paper whose methods come first."""
CONTROL = "Control: "
"""How the summary of a preset starts that is no method but a control: the preset says it itself."""


@dataclass(frozen=True)
class MethodGroup:
    """A table of the overview."""

    title: str
    about: str
    entries: tuple[Entry, ...]


def page() -> str:
    """The page in Markdown."""
    entries = presets_of_cdkit()
    ordered = sorted(entries, key=order)
    return rendered(
        "methods.md",
        filters={"key": listing.cite_key, "modes": _modes},
        groups=_groups(ordered),
        shared=shared_parts(ordered),
        papers=listing.papers(ordered),
        modes=MODES,
    )


def presets_of_cdkit() -> list[Entry]:
    """The presets that come with cdkit, without those that other packages bring."""
    folder = resources.files("cdkit.strategies") / "presets"
    return [e for e in listing.entries("methods") if (folder / f"{e.name}.toml").is_file()]


def _groups(entries: Sequence[Entry]) -> list[MethodGroup]:
    controls = tuple(filter(is_control, entries))
    cmac = tuple(
        entry
        for entry in entries
        if entry not in controls and listing.cite_key(paper_of(entry)) == CMAC
    )
    return [
        MethodGroup(
            "CMAC",
            "The paper's method, its two halves, its ablations, and the settings of its code.",
            cmac,
        ),
        MethodGroup(
            "The methods of other papers",
            "With the papers' own ablations, and variants that public code has.",
            tuple(entry for entry in entries if entry not in (*cmac, *controls)),
        ),
        MethodGroup(
            "Controls",
            "Compare every gain with these: each leaves out, or replaces, what a method is meant "
            "to gain by.",
            controls,
        ),
    ]


def is_control(entry: Entry) -> bool:
    return entry.summary.startswith(CONTROL)


def paper_of(entry: Entry) -> str:
    """The BibTeX of the paper that a preset comes from; empty where none of its parts has one.

    It is that of a part of its own where there is one: many papers share the constraint.
    """
    papers = [part.bibtex for part in entry.parts if part.bibtex and part.place != CONSTRAINT]
    return next(iter((*papers, *entry.papers)), "")


def order(entry: Entry) -> tuple[str, str, bool, str]:
    """Sorts presets by the year and the key of their paper, then by name.

    Of one paper, a method and its variants (`cmac`, `cmac_imd`) come before single presets.
    """
    paper = paper_of(entry)
    year = re.search(r"year\s*=\s*\{?(\d{4})", paper)
    single = _stems().count(entry.name.partition("_")[0]) == 1
    return (year[1] if year else "", listing.cite_key(paper), single, entry.name)


@cache
def _stems() -> list[str]:
    """The first words of the presets' names."""
    return [name.partition("_")[0] for name in cdkit.presets()]


def shared_parts(entries: Sequence[Entry]) -> dict[str, PartFacts]:
    """The parts that several methods have, by their names: the page describes each once."""
    found: dict[str, dict[str, PartFacts]] = {}
    for entry in entries:
        for part in entry.parts:
            found.setdefault(part.kind, {})[entry.name] = part
    return {
        kind: next(iter(users.values()))
        for kind, users in sorted(found.items())
        if len(users) >= SEVERAL and len({(p.formula, p.source) for p in users.values()}) == 1
    }


def _modes(entry: Entry) -> str:
    """The decode modes of a method that does not run in all."""
    return "" if entry.modes == MODES else f"decode modes: {', '.join(entry.modes)}"


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()

"""docs/methods.md, made from the presets: `python -m cdkit.evals.pages.methods_page`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.pages.listing import Entry
from cdkit.interfaces.decoding_loop import MODES

PAGE = Path("docs/methods.md")
COMMAND = "python -m cdkit.evals.pages.methods_page"
SHARED = ("combiner", "constraint")
"""Parts that methods of many papers share."""
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
            "With the papers' own ablations, and other readings by public code.",
            tuple(entry for entry in entries if entry not in (*cmac, *controls)),
        ),
        MethodGroup(
            "Controls",
            "What a gain must be held against: each leaves out, or replaces, what a method is said "
            "to gain by.",
            controls,
        ),
    ]


def is_control(entry: Entry) -> bool:
    return entry.summary.startswith(CONTROL)


def paper_of(entry: Entry) -> str:
    """The BibTeX of the paper that a preset comes from; empty where none of its parts has one.

    It is that of a part of its own where there is one: many papers share what combines logits.
    """
    papers = [part.bibtex for part in entry.parts if part.bibtex and part.place not in SHARED]
    return next(iter((*papers, *entry.papers)), "")


def order(entry: Entry) -> tuple[str, str, str]:
    """Sorts presets by the year and the key of their paper, then by name."""
    paper = paper_of(entry)
    year = re.search(r"year\s*=\s*\{?(\d{4})", paper)
    return (year[1] if year else "", listing.cite_key(paper), entry.name)


def _modes(entry: Entry) -> str:
    return "all" if entry.modes == MODES else ", ".join(entry.modes)


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()

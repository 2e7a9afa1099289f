"""docs/methods.md, made from the presets: `python -m cdkit.evals.methods_page`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cdkit.evals import listing
from cdkit.evals.generated import rendered, without_arguments, write
from cdkit.evals.listing import Entry
from cdkit.interfaces.decoding_loop import MODES

PAGE = Path("docs/methods.md")
COMMAND = "python -m cdkit.evals.methods_page"
SHARED = ("combiner", "constraint")
"""Parts that methods of many papers share."""
CONTROL = "Control: "
"""How the summary of a preset starts that is no method but a control: the preset says it itself."""


@dataclass(frozen=True)
class Group:
    """A table of the overview."""

    title: str
    about: str
    entries: tuple[Entry, ...]


def page() -> str:
    """The page in Markdown: of cdkit's own presets, whatever other packages bring."""
    folder = resources.files("cdkit.strategies") / "presets"
    entries = [e for e in listing.entries("methods") if (folder / f"{e.name}.toml").is_file()]
    ordered = sorted(entries, key=_order)
    return rendered(
        "methods.md",
        filters={"key": listing.cite_key, "modes": _modes},
        groups=_groups(ordered),
        papers=listing.papers(ordered),
        modes=MODES,
    )


def _groups(entries: Sequence[Entry]) -> list[Group]:
    controls = tuple(entry for entry in entries if entry.summary.startswith(CONTROL))
    return [
        Group(
            "The methods of papers",
            "With the papers' own ablations, and other readings by public code.",
            tuple(entry for entry in entries if entry not in controls),
        ),
        Group(
            "Controls",
            "What a gain must be held against: each leaves out, or replaces, what a method is said "
            "to gain by.",
            controls,
        ),
    ]


def _order(entry: Entry) -> tuple[str, str, str]:
    """By the paper of the part that is most its own: what combines logits is shared by many."""
    own = [part.bibtex for part in entry.parts if part.bibtex and part.place not in SHARED]
    paper = next(iter((*own, *entry.papers)), "")
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

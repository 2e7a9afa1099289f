"""docs/which_method.md, made from the presets: `python -m cdkit.evals.pages.which_method`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cdkit
from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.pages.listing import Entry
from cdkit.evals.pages.method_evidence import METRICS, Evidence, ShownDifference, evidence
from cdkit.evals.pages.methods_page import is_control, order, presets_of_cdkit
from cdkit.interfaces.decoding_loop import MODES
from cdkit.interfaces.distortion import DistortionStrategy
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import REGISTRIES

PAGE = Path("docs/which_method.md")
COMMAND = "python -m cdkit.evals.pages.which_method"

MODIFIED: Mapping[str, str] = {
    "pixels": "image",
    "features": "image",
    "prompt": "prompt",
    "logits": "attention",
    "text_logits": "attention",
    "values": "attention",
}
"""What a distortion modifies -> what that is of the model."""
TABLES: Mapping[str, str] = {
    "interventions": "attention",
    "state_interventions": "hidden states",
    "calibrator": "positions",
    "readout": "inner layers",
    "loop": "search",
    "schedules": "logits",
    "combiner": "logits",
    "constraint": "logits",
}
"""The table of a part in a configuration -> what it changes or reads."""
GROUPS: Mapping[str, str] = {
    "hidden states": "hidden states or outputs of heads, by hooks in decoder layers",
    "attention": "the attention inside decoder layers",
    "positions": "the position indices of rotary embeddings",
    "image": "the image, before or after its encoder",
    "prompt": "the prompt: another instruction, or no image",
    "inner layers": "nothing; logits of inner layers are read",
    "search": "the search; tokens may be taken back",
    "logits": "the logits alone",
}
"""What a method changes -> what must be allowed for it. A method stands in the first group that
fits."""
NONE = "-"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class PresetCosts:
    """One preset in the table."""

    name: str
    summary: str
    changes: tuple[str, ...]
    rows: str
    """The decoder's rows for each sample and token."""
    operators: str
    seconds: str
    needs: str
    shown: tuple[str, ...]
    """A cell for each of `METRICS`."""


@dataclass(frozen=True)
class PresetGroup:
    """The presets that change the same."""

    title: str
    about: str
    one_pass: tuple[PresetCosts, ...]
    two_passes: tuple[PresetCosts, ...]


def page() -> str:
    """The page in Markdown: of cdkit's presets, without those that other packages bring."""
    entries, known = sorted(presets_of_cdkit(), key=order), evidence()
    controls = [_row(e, known.get(e.name)) for e in entries if is_control(e)]
    return rendered(
        "which_method.md",
        filters={},
        groups=list(_groups([e for e in entries if not is_control(e)], known)),
        controls=controls,
    )


def changes_of(method: Method) -> tuple[str, ...]:
    """What the working parts of a method change, the deepest first."""
    found = {each for _, part in listing.working_parts(method) for each in _changes(part)}
    return tuple(name for name in GROUPS if name in found)


def _changes(part: Any) -> Iterator[str]:
    if isinstance(part, DistortionStrategy):
        yield from (MODIFIED[each] for each in part.modifies)
        return
    for table, registry in REGISTRIES.items():
        if table in TABLES and isinstance(part, registry.base):
            yield TABLES[table]


def _groups(entries: Sequence[Entry], known: Mapping[str, Evidence]) -> Iterator[PresetGroup]:
    rows = [_row(entry, known.get(entry.name)) for entry in entries]
    for title, about in GROUPS.items():
        here = [row for row in rows if row.changes and row.changes[0] == title]
        if here:
            one = tuple(row for row in here if row.rows.startswith("1"))
            yield PresetGroup(title, about, one, tuple(row for row in here if row not in one))


def _row(entry: Entry, known: Evidence | None) -> PresetCosts:
    method = cdkit.load(entry.name)
    return PresetCosts(
        name=entry.name,
        summary=entry.summary,
        changes=changes_of(method),
        rows=_rows(method),
        operators=_ratio(None if known is None else known.operators),
        seconds=_ratio(None if known is None else known.seconds),
        needs=", ".join(_needs(method)) or NONE,
        shown=tuple(_cell(None if known is None else known.shown.get(m)) for m in METRICS),
    )


def _rows(method: Method) -> str:
    alone = len(method.prompt_branches)
    return f"{1 + len(method.live_branches)}" + (f" (+{alone})" if alone else "")


def _needs(method: Method) -> Iterator[str]:
    if method.modes != MODES:
        yield ", ".join(method.modes)
    for branch in method.live_branches:
        if any(distortion.needs_text for distortion in branch.prompt):
            yield "a processor"
    if method.lacks:
        yield "[a file](vectors.md)"


def _ratio(cost: float | None) -> str:
    return NONE if cost is None else f"{cost:.2f}"


def _cell(shown: ShownDifference | None) -> str:
    """In points, with the interval; the verdict as the tables of `cdkit ablate` show it."""
    if shown is None:
        return NONE
    points = [100 * each for each in (shown.difference, shown.low, shown.high)]
    value, low, high = (f"{each:+.1f}".replace("-", MINUS) for each in points)
    mark = {"better": " ▲", "worse": " ▼"}.get(shown.verdict, "")
    return f"{value} [{low}, {high}]{mark}"


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()

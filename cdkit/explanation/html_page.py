"""The page of an explanation: one HTML file that loads nothing and reads without scripts.

What is shown follows from two groups of radio buttons, one for tokens and one for layers, by CSS
alone. A script of a few lines adds the arrow keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cdkit.explanation import summary
from cdkit.explanation.charts import PositionChart, layer_points, position_charts
from cdkit.explanation.explained import (
    COMBINED,
    PLAIN,
    Candidate,
    ExplainedAnswer,
    ExplainedPrompt,
    ExplainedStep,
    PictureView,
    most_telling,
    parts_at,
)
from cdkit.explanation.sprites import data_uri, photo, pooled, spread, sprite
from cdkit.methods.branch import ORIGINAL

TEMPLATE = "explanation.html"
PIXELS = 4_000_000
"""Pixels of all sprite sheets together, at most: half a byte each before compression."""
BYTES = 1_600_000
"""Bytes of all sprite sheets together, at most."""
FEWEST_LAYERS = 4
PHOTO = 336
"""Pixels of a picture's longer side, at most."""
ROWS = 12
"""Candidates that a token's table shows."""
COLUMNS = 6
"""Columns that it shows; further inner layers are in `Explanation.tables`."""


@dataclass(frozen=True)
class AttentionPanel:
    """Attention or a mask of one branch over one picture."""

    title: str
    kind: str
    view: int
    style: Markup


@dataclass(frozen=True, eq=False)
class AnswerView:
    """An answer as the page shows it."""

    number: int
    answer: ExplainedAnswer
    columns: tuple[str, ...]
    hidden_columns: int
    parts_at: int | None
    """The first step whose token is not that of the plain answer; None where none is."""
    panels: tuple[AttentionPanel, ...]
    charts: tuple[PositionChart, ...]
    profiles: tuple[Mapping[str, str], ...]
    """For each step: branch -> the points of its share of attention by layer."""

    @cached_property
    def changed(self) -> frozenset[int]:
        return frozenset(self.answer.changed)

    def column(self, name: str) -> str:
        """What the page calls a column, or a branch."""
        return summary.column_name(self.answer, name)

    @property
    def caption(self) -> str:
        """What the columns of a token's table are."""
        if COMBINED not in self.answer.columns:
            return ", without the method and with it" if len(self.answer.columns) > 1 else ""
        if self.answer.contrastive and self.answer.branches:
            return ", before the contrast and after it"
        return ", before the method combines its predictions and after it"

    def rows(self, step: ExplainedStep) -> list[Candidate]:
        """The candidates that the table shows."""
        return step.shown(self.columns, ROWS)

    def tallest(self, step: ExplainedStep) -> float:
        """The largest probability in a token's table: its bar is as wide as the column."""
        return max(max(one.probabilities.values()) for one in self.rows(step))

    def told(self, number: int) -> str:
        """A token's line: what plain would have chosen, or that it is the same."""
        step = self.answer.steps[number]
        mine = step.favourites[self.answer.last]
        lines = []
        if number in self.changed:
            lines.append(summary.why(self.answer, number))
        elif self.answer.last != self.answer.base:
            who = "The plain model" if self.answer.base == PLAIN else "The original branch"
            lines.append(f"{who} prefers the same token, given the same words before.")
        if step.token != mine:
            text = summary.quoted(step.candidate(mine).text)
            lines.append(
                f"The most probable token is {text}: sampling, a beam search or a logits processor "
                "chose another."
            )
        return " ".join(lines)

    def share_line(self, number: int, branch: str) -> str:
        """The share of the row's attention that is on the image, in percent, layer by layer."""
        shares = self.answer.maps[branch].attention[number].sum(axis=-1)
        return " ".join(f"{100 * share:.0f}" for share in shares)


def render(found: ExplainedPrompt) -> str:
    """The page. Whatever a model or a file said is escaped."""
    environment = Environment(
        loader=PackageLoader("cdkit.explanation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = summary.quoted
    environment.filters["share"] = summary.share
    layers, panels, note = drawn(found)
    views = [_view(found, number, panels[number]) for number in range(len(found.answers))]
    answer, step = most_telling(found.answers)
    return environment.get_template(TEMPLATE).render(
        found=found,
        paragraphs=[
            (summary.paragraph(own, found.answers[0]), summary.mechanism(own))
            for own in found.answers
            if own.name != PLAIN
        ],
        views=views,
        layers=layers,
        layer_places=[found.layers.index(layer) for layer in layers],
        first_layer=len(layers) // 2,
        first=(answer, step),
        pictures=[Markup(photo(view.pixels, PHOTO)) for view in found.views],
        distorted=_distorted(found),
        most=max((len(own.steps) for own in found.answers), default=0),
        note=note,
        title=_title(found.answers),
        PLAIN=PLAIN,
        ORIGINAL=ORIGINAL,
        COMBINED=COMBINED,
    )


def _title(answers: Sequence[ExplainedAnswer]) -> str:
    names = [answer.name for answer in answers if answer.name != PLAIN]
    if not names:
        return "One answer of the plain model"
    listed = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    return f"What {listed} did to one answer"


def _view(found: ExplainedPrompt, number: int, panels: tuple[AttentionPanel, ...]) -> AnswerView:
    answer = found.answers[number]
    shown = list(answer.columns)
    if len(shown) > COLUMNS:  # inner layers that are read out go first
        kept = {PLAIN, ORIGINAL, COMBINED, *answer.branches}
        others = [name for name in shown if name not in kept]
        spare = max(0, COLUMNS - (len(shown) - len(others)))
        chosen = kept | set(others[:: max(1, len(others) // max(1, spare))][:spare])
        shown = [name for name in shown if name in chosen]
    return AnswerView(
        number,
        answer,
        tuple(shown),
        len(answer.columns) - len(shown),
        parts_at(found.answers[0], answer),
        panels,
        position_charts(answer.positions),
        tuple(_profiles(answer)),
    )


def _profiles(answer: ExplainedAnswer) -> Iterator[dict[str, str]]:
    """For each step: branch -> the points of its share of attention on the image, by layer."""
    shares = {branch: maps.attention.sum(axis=-1) for branch, maps in answer.maps.items()}
    top = max((float(own.max()) for own in shares.values()), default=0.0)
    for step in range(len(answer.steps)):
        yield {branch: layer_points(own[step], top) for branch, own in shares.items()}


def _distorted(found: ExplainedPrompt) -> list[list[tuple[str, str, Markup]]]:
    """For each picture (method, branch, address) of its distorted copies."""
    return [
        [
            (method, branch, Markup(photo(pixels, PHOTO)))
            for (method, branch), pixels in view.distorted.items()
        ]
        for view in found.views
    ]


# ---- attention over the pictures -----------------------------------------------------------------


def drawn(found: ExplainedPrompt) -> tuple[tuple[int, ...], list[tuple[AttentionPanel, ...]], str]:
    """The layers of which attention is drawn, the panels of each answer, and what was left out."""
    placed = [(n, view) for n, view in enumerate(found.views) if view.grid is not None]
    if not placed or not any(answer.maps for answer in found.answers):
        return (), [()] * len(found.answers), ""
    grids = {n: _cells(view) for n, view in placed}
    sheets = sum(
        len(answer.steps) * (1 + (maps.mask is not None))
        for answer in found.answers
        for maps in answer.maps.values()
    )
    most = PIXELS // max(1, sheets * FEWEST_LAYERS * len(grids))
    small = {n: pooled(cells, max(most, 16)) for n, cells in grids.items()}
    coarse = any(small[n].size < grids[n].size for n in grids)
    each = sheets * sum(cells.size for cells in small.values())
    count = max(min(len(found.layers), PIXELS // max(each, 1)), 1)
    while True:
        layers = found.shown_layers or spread(found.layers, count)
        panels, size = _panels(found, layers, small)
        if size <= BYTES or len(layers) == 1 or found.shown_layers is not None:
            break
        count = max(1, int(len(layers) * 0.7))
    note = []
    if len(layers) < len(found.layers):
        note.append(f"{len(layers)} of {len(found.layers)} layers are drawn")
    if coarse:
        note.append("every second token of a row and of a column is drawn, or fewer")
    return layers, panels, "; ".join(note)


def _cells(view: PictureView) -> Int[np.ndarray, "height width"]:
    assert view.grid is not None
    cells: Int[np.ndarray, "height width"] = view.grid.tokens.numpy() + view.first
    return cells


def _panels(
    found: ExplainedPrompt,
    layers: Sequence[int],
    grids: Mapping[int, Int[np.ndarray, "_ _"]],
) -> tuple[list[tuple[AttentionPanel, ...]], int]:
    """The panels of each answer, and how many bytes their sheets have."""
    indices = [found.layers.index(layer) for layer in layers]
    made, size = [], 0
    for answer in found.answers:
        panels = list[AttentionPanel]()
        for title, kind, values in _sheets(answer):
            for number, cells in grids.items():
                sheet = sprite(values[:, indices], cells, mask=kind == "mask")
                size += len(sheet.png)
                style = _style(found.views[number], sheet.steps, sheet.layers, sheet.png)
                shown = summary.column_name(answer, title)
                panels.append(AttentionPanel(shown, kind, number, style))
        made.append(tuple(panels))
    return made, size


def _sheets(
    answer: ExplainedAnswer,
) -> Iterator[tuple[str, str, Float[np.ndarray, "steps layers image"]]]:
    for branch, maps in answer.maps.items():
        yield branch, "attention", maps.attention
        if maps.mask is not None:
            yield branch, "mask", maps.mask


def _style(view: PictureView, steps: int, layers: int, png: bytes) -> Markup:
    """Where the sheet lies on the picture, and how far it moves for a token and a layer."""
    assert view.grid is not None
    top, left, bottom, right = (100 * edge for edge in view.grid.box)
    return Markup(
        f"top:{top:.3f}%;left:{left:.3f}%;width:{right - left:.3f}%;height:{bottom - top:.3f}%;"
        f"background-image:url({data_uri(png)});background-size:{100 * layers}% {100 * steps}%;"
        f"background-position:calc(var(--l)*{100 / max(1, layers - 1):.5f}%) "
        f"calc(var(--t)*{100 / max(1, steps - 1):.5f}%)"
    )

"""What is known of one answer under several methods: the numbers that pages are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from cdkit.interfaces.token_grid import TokenGrid

PLAIN = "plain"
"""The column of the model without a method, and the name of that method."""
COMBINED = "combined"
"""The column after the combiner and the constraint: the logits that `generate` chooses from."""
VISIBLE = 0.0005
"""The least probability that a table is worth a row for."""
BY_CONSTRAINT, BY_COMBINER = "constraint", "combiner"


@dataclass(frozen=True)
class Candidate:
    """One token that might have been chosen at a step."""

    token: int
    text: str
    probabilities: Mapping[str, float]
    """Column -> probability: the softmax of that column's raw logits over the whole vocabulary."""
    removed_by: str
    """"constraint" or "combiner" where one of them ruled the token out, else empty."""


@dataclass(frozen=True)
class ExplainedStep:
    """How one token was chosen."""

    token: int
    text: str
    candidates: tuple[Candidate, ...]
    """The most probable tokens of each column, and the chosen one; by what they have in the last
    column, the most probable first."""
    favourites: Mapping[str, int]
    """Column -> its most probable token."""
    removed: Mapping[str, int]
    """Who ruled tokens out ("constraint", "combiner") -> how many."""
    removed_mass: float
    """The probability that the removed tokens have together in the original branch."""
    alpha_scale: float | None
    """What the schedules multiplied alpha by; None for a method without schedules."""

    def shown(self, columns: Sequence[str], most: int) -> list[Candidate]:
        """The candidates that a table of `most` rows shows, in their order.

        The chosen token and the favourite of each column are always there; those that are
        improbable in every column only among these.
        """
        kept = {self.token, *(self.favourites[name] for name in columns)}
        others = [
            one.token
            for one in self.candidates
            if one.token not in kept and max(one.probabilities.values()) >= VISIBLE
        ]
        kept.update(others[: max(0, most - len(kept))])
        return [one for one in self.candidates if one.token in kept]

    def candidate(self, token: int) -> Candidate:
        """The candidate with this token, one of `favourites` or the chosen one."""
        return next(one for one in self.candidates if one.token == token)


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of one branch to the image, at each step and layer."""

    attention: Float[np.ndarray, "steps layers image"]
    """Weights after the softmax, of the row that predicts the step's token, averaged over heads."""
    mask: Float[np.ndarray, "steps layers image"] | None
    """The share of heads in which the cell of that row is cut or replaced; None where none is."""


@dataclass(frozen=True, eq=False)
class ExplainedAnswer:
    """One method's answer."""

    name: str
    summary: str
    """What the method is, in a line."""
    text: str
    columns: tuple[str, ...]
    """What the steps have probabilities of: "plain", the branches and readouts, "combined"."""
    branches: tuple[str, ...]
    """The distorted branches among the columns."""
    steps: tuple[ExplainedStep, ...]
    maps: Mapping[str, AttentionMaps]
    """Branch -> its attention."""
    notes: tuple[str, ...]
    """What a reader must know of the numbers."""
    parts: tuple["DescribedPart", ...]
    given: tuple["BranchInput", ...]
    """What each distorted branch is given."""
    positions: tuple["PositionLine", ...]
    contrastive: bool = False
    """Whether logits of branches count by their differences to the original ones."""
    refused: str = ""
    """Why the method could not answer; then there are no steps."""

    @property
    def base(self) -> str:
        """The column that the answer is compared with: "plain" where it is there, else the original
        branch."""
        return PLAIN if PLAIN in self.columns else self.columns[0] if self.columns else ""

    @property
    def last(self) -> str:
        """The column that tokens are chosen from."""
        return self.columns[-1]

    @property
    def takes_the_best(self) -> bool:
        """Whether each token is the most probable one, as under greedy decoding.

        Draws, beams and logits processors take others, too.
        """
        return all(step.token == step.favourites[self.last] for step in self.steps)

    @property
    def changed(self) -> tuple[int, ...]:
        """The steps at which the most probable token is not that of the `base` column, given the
        same words before."""
        return tuple(
            number
            for number, step in enumerate(self.steps)
            if step.favourites[self.last] != step.favourites[self.base]
        )


@dataclass(frozen=True)
class DescribedPart:
    """A part of a method, in words that it brings along."""

    place: str
    kind: str
    words: str
    formula: str
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BranchInput:
    """What a distorted branch is given, beside what the original one is given."""

    branch: str
    changes: tuple[str, ...]
    """What its distortions change, in words."""
    words: str
    """What they do: the first sentence of each."""
    has_pixels: bool
    prompt: tuple[tuple[str, str], ...] | None
    """(what became of it, text) of the pieces of its prompt: "same", "added" or "removed"; None
    where it is the original prompt."""


@dataclass(frozen=True, eq=False)
class PositionLine:
    """Where a calibrator puts image tokens, on one axis, in one layer or in all."""

    axis: str
    """"" where positions have one axis."""
    layer: int | None
    ordinary: Float[np.ndarray, " image"]
    """How many positions the last token of the prompt is ahead of each image token."""
    calibrated: Float[np.ndarray, " image"]


@dataclass(frozen=True, eq=False)
class PictureView:
    """One picture of the page: an image, a tile or a frame, and the grid of tokens over it."""

    name: str
    image: int
    """The number of the image in the prompt, from 0."""
    grid: TokenGrid | None
    first: int
    """The number of the image's first token among the image tokens of the prompt."""
    pixels: UInt8[np.ndarray, "height width 3"]
    distorted: Mapping[tuple[str, str], UInt8[np.ndarray, "height width 3"]]
    """(method, branch) -> the same picture as that branch is given it."""


@dataclass(frozen=True, eq=False)
class ExplainedPrompt:
    """The answers to one prompt, under the plain model and under methods."""

    model: str
    prompt: str
    """The prompt as the decoder gets it, without the image tokens."""
    how: str
    """How tokens were chosen."""
    answers: tuple[ExplainedAnswer, ...]
    """The plain one first, where it ran."""
    layers: tuple[int, ...]
    """The decoder's layers that have attention."""
    shown_layers: tuple[int, ...] | None
    """Those of which the page draws attention; None leaves the choice to the page."""
    views: tuple[PictureView, ...]
    notes: tuple[str, ...]
    """Why something is not shown."""


def parts_at(plain: ExplainedAnswer, answer: ExplainedAnswer) -> int | None:
    """The first token of an answer that is not that of the plain one; None where none is."""
    if plain.name != PLAIN or answer.name == PLAIN:
        return None
    mine, its = ([step.token for step in own.steps] for own in (answer, plain))
    for number, token in enumerate(mine):
        if number >= len(its) or its[number] != token:
            return number
    return None


def most_telling(answers: Sequence[ExplainedAnswer]) -> tuple[int, int]:
    """(answer, step) that a reader wants to see first: the first token that a method changed.

    Where none did: the first one that is not that of the plain answer; else the first token of the
    last answer that has one.
    """
    for number, answer in enumerate(answers):
        if answer.name != PLAIN and answer.changed:
            return number, answer.changed[0]
    for number, answer in enumerate(answers):
        if (at := parts_at(answers[0], answer)) is not None:
            return number, at
    with_steps = [number for number, answer in enumerate(answers) if answer.steps]
    return (with_steps[-1] if with_steps else 0), 0

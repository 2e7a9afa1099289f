"""What a run found, as plain data for reports: tables, curves, galleries and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.statistics.bootstrap import Estimate

SIGNIFICANT = 0.05
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "chair", "hal", "cog"})
NEITHER_IS_BETTER = frozenset(
    {
        *("yes_ratio", "unknown", "mean_length", "truncated", "chance"),
        *("distinct_1", "distinct_2", "repetition_4"),
    }
)
"""Shown with their intervals, never marked: more or less of it is neither good nor bad."""
COUNTS = frozenset({"unknown", "truncated", "mean_length"})
KINDS = {
    "score": (1, 1.0),
    "lower": (-1, 100.0),
    "lower_score": (-1, 1.0),
    "neither": (0, 100.0),
    "neither_score": (0, 1.0),
}
"""The end of a metric's name after a dot, where the name alone does not say it: its better side
(as in `direction`) and its scale (as in `scale`). No end: a share, more of which is better."""
POINTS = ("hallucination", "perception", "cognition")
"""What MME's totals are called, whichever tasks they are over."""
MODES = {
    "greedy": "greedy",
    "sample": "sampling",
    "beam": "beam search",
    "beam sample": "beam sampling",
}
"""Decode mode -> what tables call it."""


@dataclass(frozen=True)
class Cell:
    """One metric of one method: its value, and how far it stands from the base's."""

    value: Estimate
    difference: Estimate | None = None
    """None in the base's own row."""
    p: float | None = None
    """Sign-flip by image, before Holm."""
    p_holm: float | None = None
    """Adjusted over the table; None for a metric that is neither good nor bad."""
    verdict: str = ""
    """"better" or "worse" than the base where Holm's test says so, else nothing."""
    best: bool = False
    gained: int | None = None
    """Answers that are right here and wrong in the base (of CHAIR_s: that hallucinate here
    and not there); `lost` the other way round. Known for shares of one greedy run."""
    lost: int | None = None
    mcnemar: float | None = None
    """Its exact p, which takes questions for independent: beside the test by image only."""
    detectable: float | None = None
    """The smallest true difference that the test by image would find four times in five at level
    .05, and `detectable_holm` at the strictest level of the table; None: none, or not known."""
    detectable_holm: float | None = None

    @property
    def mark(self) -> str:
        """What stands beside the value, so that a verdict does not hang on colour."""
        return " ★" if self.best else {"better": " ▲", "worse": " ▼"}.get(self.verdict, "")


@dataclass(frozen=True)
class MethodRow:
    """One method's cells: none for a metric without a value, such as AUC without yes scores."""

    method: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """One benchmark under one decode mode; `rows` has the methods that it is defined for."""

    benchmark: str
    mode: str
    seeds: int
    images: int
    samples: int
    metrics: tuple[str, ...]
    sections: Mapping[str, tuple[str, ...]]
    """Title -> methods, also those that are absent here; one may stand in two sections."""
    rows: Mapping[str, MethodRow]
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Method -> the decode modes that it is defined for, of which this is none."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Method -> why the model cannot run it."""
    failed: int = 0
    """Samples that some method has no answer to: left out of every row."""
    model: str = ""
    """The model, where a run has several."""
    shifted: tuple[tuple[float, float], ...] = ()
    """(yes ratio, accuracy) of the base, were it to say yes more or less often: its answers by a
    threshold on its own yes scores, for every threshold. Greedy runs that have the scores."""
    base: str = PLAIN
    """The method that every difference is taken to."""
    tests: int = 0
    """Holm's family: how many p-values were corrected together."""

    @property
    def strictest(self) -> float:
        """The level that Holm's correction holds the smallest p-value to."""
        return SIGNIFICANT / max(1, self.tests)

    @property
    def decoding(self) -> str:
        plural = "s" if self.seeds > 1 else ""
        seeds = f", {self.seeds} seed{plural}" if self.mode == "sample" else ""
        return f"{MODES[self.mode]}{seeds}"

    @property
    def subject(self) -> str:
        """The benchmark, and the model where there are several."""
        return f"{self.benchmark}, {self.model}" if self.model else self.benchmark

    @property
    def title(self) -> str:
        return f"{self.subject}, {self.decoding}"

    @property
    def headline(self) -> str:
        """The first metric that has a better side and that the base has a value of."""
        known = self.rows[self.base].cells if self.base in self.rows else {}
        sided = [m for m in self.metrics if direction(m)]
        return next((m for m in (*sided, *self.metrics) if m in known), (*sided, *self.metrics)[0])


@dataclass(frozen=True)
class Curve:
    """A metric of one method against a parameter, or against a place."""

    label: str
    x: tuple[float, ...]
    y: tuple[Estimate, ...]


@dataclass(frozen=True)
class Figure:
    """Curves with their axes, in the units shown; `reference` is a level drawn across.

    `ticks` name the places 0, 1, ... where what is swept is no number.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    ticks: tuple[str, ...] = ()
    reference: Estimate | None = None
    reference_label: str = ""
    note: str = ""


@dataclass(frozen=True)
class SharedAnswer:
    """One answer to a question, and the methods that gave it."""

    text: str
    methods: tuple[str, ...]
    right: bool | None
    """Of a caption: whether all that it names is there. None: not known."""
    note: str = ""
    """Such as what a caption names that is not in the image."""


@dataclass(frozen=True, eq=False)
class LayerHeatmap:
    """Attention or mask of one branch of a method on each image token, by layer, for a question."""

    method: str
    title: str
    mask: bool
    """Whether `layers` are shares of heads whose cell is masked, else weights of attention."""
    layers: Float[np.ndarray, "layers tokens"]


@dataclass(frozen=True, eq=False)
class AttentionOverlay:
    """Heatmaps over the picture as the model was given it; its image tokens form one grid."""

    picture: UInt8[np.ndarray, "height width 3"]
    grid: tuple[int, int]
    heatmaps: tuple[LayerHeatmap, ...]


@dataclass(frozen=True, eq=False)
class Example:
    """One question that methods answer differently; everything in it is as the run has it."""

    sample: str
    kind: str
    """One of `gallery.KINDS`."""
    prompt: str
    target: str | None
    picture: bytes
    """A small PNG or JPEG."""
    media_type: str
    answers: tuple[SharedAnswer, ...]
    overlay: AttentionOverlay | None = None
    commands: tuple[str, ...] = ()
    """What to type in a shell to have answers explained."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """The examples of one benchmark, and how they were drawn."""

    benchmark: str
    rule: str
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """Such as why no attention is drawn."""
    answered: str = "Greedy answers."
    """How the answers were decoded."""

    @property
    def drawn(self) -> bool:
        """Whether attention is drawn over some picture."""
        return any(example.overlay is not None for example in self.examples)


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds an answer by method, as a multiple of the base's in the same run."""

    ratios: Mapping[str, Estimate]
    note: str
    """What was timed, how often, and what the spread is over."""


@dataclass(frozen=True)
class TextTable:
    """A table of words: what does not fit the grid of methods and metrics.

    Each row has a cell for each of `heads`; the first says what the row is about.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.heads) for row in self.rows):
            raise ValueError(f"{self.title}: every row needs {len(self.heads)} cells")


@dataclass(frozen=True)
class MethodNote:
    """What a method of the tables is."""

    name: str
    """As the tables call it."""
    summary: str
    paper: str
    """Title, venue and year, or why there is none."""
    control: bool = False
    papers: tuple[str, ...] = ()
    """The BibTeX of all of its working parts."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a run or a comparison found."""

    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    text_tables: tuple[TextTable, ...] = ()
    costs: Costs | None = None
    methods: tuple[MethodNote, ...] = ()
    citations: tuple[str, ...] = ()
    """The BibTeX of methods and benchmarks, each paper once."""

    @property
    def controls(self) -> frozenset[str]:
        """Names of the methods that are controls."""
        return frozenset(note.name for note in self.methods if note.control)


def mode_names(modes: Sequence[str]) -> str:
    """Decode modes in words: `greedy, beam search`."""
    return ", ".join(MODES[mode] for mode in modes)


def direction(metric: str) -> int:
    """1 where more of it is better, -1 where less is, 0 where it is neither."""
    name = metric.rsplit(".", 1)[-1]
    if name in KINDS:
        return KINDS[name][0]
    return 0 if name in NEITHER_IS_BETTER else -1 if name in LOWER_IS_BETTER else 1


def scale(metric: str) -> float:
    """100 for shares, which are shown in percent; 1 for counts, lengths and MME's points."""
    name = metric.rsplit(".", 1)[-1]
    if name in KINDS:
        return KINDS[name][1]
    return 1.0 if name in COUNTS or name.startswith(POINTS) else 100.0

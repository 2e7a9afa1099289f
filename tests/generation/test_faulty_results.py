"""What parts of other people declare and return wrongly is an error: it is never used as it is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from parity.tiny import WordTokenizer, batch, sample, tiny
from torch import Tensor

import cdkit
from cdkit.methods.branch import Branch
from cdkit.methods.declarations import check_fields_of
from cdkit.methods.method import Method

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52))
PLAIN, VCD = cdkit.load("plain"), cdkit.load("vcd")
Make = Callable[..., Any]


@dataclass(frozen=True)
class ReturnsStates(cdkit.StateIntervention):
    """Returns what `make` makes of a state segment."""

    site: ClassVar[cdkit.Site] = "mlp"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"module_input"})

    make: Make = lambda self, s: s.states
    layers: cdkit.Depth = (0.0, 1.0)
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Any:
        return self.make(self, states)


class RemembersStates(ReturnsStates):
    """The same, with a memory."""

    remembers = True


@dataclass(frozen=True)
class ReturnsSegment(cdkit.AttentionDistortion):
    """Returns what `make` makes of a segment."""

    modifies: ClassVar[frozenset[cdkit.Modified]] = frozenset({"logits", "values"})

    make: Make = lambda self, s: s

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: cdkit.CrossModalSegment) -> Any:
        return self.make(self, segment)


class RemembersSegment(ReturnsSegment):
    """The same, with a memory."""

    remembers = True


@dataclass(frozen=True)
class ReturnsPixels(cdkit.PixelDistortion):
    """Returns what `make` makes of pixels."""

    make: Make = lambda self, x: x

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Any:
        return self.make(self, pixels)


@dataclass(frozen=True)
class ReturnsPrompt(cdkit.PromptDistortion):
    """Returns what `make` makes of a prompt."""

    needs_text: ClassVar[bool] = False

    make: Make = lambda self, x: x

    def distort(self, prompt: cdkit.Prompt) -> Any:
        return self.make(self, prompt)


@dataclass(frozen=True)
class ReturnsLogits(cdkit.LogitCombiner):
    """Returns what `make` makes of the original logits, and a state."""

    stateful: ClassVar[bool] = False

    make: Make = lambda self, x: (x, {})

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: cdkit.State
    ) -> Any:
        return self.make(self, original)


class CarriesState(ReturnsLogits):
    """The same, with a state."""

    stateful = True


@dataclass(frozen=True)
class ReturnsFactor(cdkit.AlphaSchedule):
    """Returns what `make` makes of the signals, and a state."""

    reads_attention: ClassVar[bool] = False

    make: Make = lambda self, x: (x.logits[:, 0] * 0 + 1, {})

    def scale(self, signals: Any, *, step: int, state: cdkit.State) -> Any:
        return self.make(self, signals)


@dataclass(frozen=True)
class ReturnsAllowed(cdkit.Constraint):
    """Returns what `make` makes of the original logits."""

    make: Make = lambda self, x: x > -math.inf
    on_empty: Any = "raise"

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def description(self) -> str:
        return "the constraint of this test"

    def allowed(self, original: Tensor) -> Any:
        return self.make(self, original)


@dataclass(frozen=True)
class ReturnsLayers(cdkit.LayerReadout):
    """Returns what `make` makes of the number of layers."""

    make: Make = lambda self, count: {"last": count}

    def layers(self, count: int) -> Any:
        return self.make(self, count)


@dataclass(frozen=True)
class ReturnsPositions(cdkit.PositionCalibrator):
    """Returns what `make` makes of the positions."""

    make: Make = lambda self, x: x

    @property
    def is_identity(self) -> bool:
        return False

    def calibrate(self, positions: Tensor, image_index: Tensor) -> Any:
        return self.make(self, positions)


@dataclass(frozen=True)
class ReturnsAnswers(cdkit.DecodingLoop):
    """Returns what `make` makes of the prompt."""

    modes: ClassVar[Any] = frozenset({"greedy"})

    make: Make = lambda self, x: [cdkit.Hypothesis((1,), 0.0)]

    def run(self, decoding: cdkit.DecodingContext) -> Any:
        return self.make(self, decoding)


def with_part(part: Any) -> Method:
    """A method with this part."""
    match part:
        case cdkit.StateIntervention():
            return replace(PLAIN, state_interventions=(part,))
        case cdkit.DistortionStrategy():
            return replace(VCD, branches=(Branch("distorted", (part,)),))
        case cdkit.LogitCombiner():
            return replace(VCD, combiner=part)
        case cdkit.AlphaSchedule():
            return replace(VCD, schedules=(part,))
        case cdkit.Constraint():
            return replace(VCD, constraint=part)
        case cdkit.LayerReadout():
            return replace(VCD, branches=(), readout=part)
        case cdkit.PositionCalibrator():
            return replace(PLAIN, calibrator=part)
        case _:
            return replace(PLAIN, loop=part)


def answer(method: Method, *, optimize: bool = True, **how: Any) -> None:
    """Two tokens of each sample."""
    attached = cdkit.attach(
        tiny(2), method, processor=WordTokenizer(), optimize=optimize, sample_ids=["a", "b"]
    )
    with attached:
        tiny(2).generate(**batch(SAMPLES), max_new_tokens=2, do_sample=False, **how)


def without_one_image_token(self: Any, prompt: cdkit.Prompt) -> cdkit.Prompt:
    at = prompt.is_image.index(True)
    ids, flags = prompt.ids, prompt.is_image
    return replace(prompt, ids=ids[:at] + ids[at + 1 :], is_image=flags[:at] + flags[at + 1 :])


def keeps(value: Callable[[Any], Any]) -> Make:
    """Put something into the memory, and change nothing."""

    def make(self: Any, segment: Any) -> Any:
        segment.memory[self] = value(segment)
        return getattr(segment, "states", segment)

    return make


def every(segment: Any) -> Tensor:
    """All cells."""
    cells: Tensor = segment.cells[:, None].expand_as(segment.logits)
    return cells


WRITES = "writes into a tensor that it was given"
ROWS_FIRST = "whose first axis is the 2 rows"
FAULTY: tuple[tuple[Any, str], ...] = (
    (ReturnsStates(lambda p, s: s.states.long()), "type torch.int64, and must return floating"),
    (ReturnsStates(lambda p, s: s.states.mul_(0.5)), WRITES),
    (ReturnsStates(lambda p, s: (s.module_input.mul_(0.5), s.states)[1]), WRITES),
    (ReturnsStates(keeps(lambda s: s.states[:, 0])), "declare remembers = True"),
    (RemembersStates(keeps(lambda s: torch.zeros(()))), ROWS_FIRST),
    (RemembersStates(keeps(lambda s: 3)), "holds int as an entry"),
    (ReturnsSegment(lambda p, s: None), "distort of ReturnsSegment returned NoneType"),
    (ReturnsSegment(lambda p, s: s.changed(logits=s.logits[..., :1])), r"must return logits of s"),
    (ReturnsSegment(lambda p, s: replace(s, logits=s.logits.half())), "logits .* torch.float16"),
    (ReturnsSegment(lambda p, s: s.changed(text_logits=s.text_logits[:1])), "text_logits of shap"),
    (ReturnsSegment(lambda p, s: replace(s, replaced=every(s))), "cells without a replacement"),
    (ReturnsSegment(lambda p, s: replace(s, replacement=s.image.values)), "without replaced cells"),
    (
        ReturnsSegment(
            lambda p, s: replace(s, replaced=every(s), replacement=s.image.values[..., :1])
        ),
        "must return replacement of shape",
    ),
    (
        ReturnsSegment(lambda p, s: s.changed(replaced=s.cells, replacement=s.image.values)),
        "must return replaced of shape",
    ),
    (ReturnsSegment(lambda p, s: replace(s, pruned=s.image.valid)), "keeps_prefix = False"),
    (ReturnsSegment(lambda p, s: replace(s, cells=~s.cells)), "another cells"),
    (ReturnsSegment(lambda p, s: (s.logits.mul_(2), s)[1]), WRITES),
    (ReturnsSegment(lambda p, s: (s.image.values.mul_(2), s)[1]), WRITES),
    (ReturnsSegment(keeps(lambda s: s.logits[:, 0])), "declare remembers = True"),
    (RemembersSegment(keeps(lambda s: torch.zeros(1))), ROWS_FIRST),
    (ReturnsPixels(lambda p, x: None), "distort of ReturnsPixels returned NoneType"),
    (ReturnsPixels(lambda p, x: x[..., :1]), "must return a tensor of shape"),
    (ReturnsPixels(lambda p, x: x.mul_(0)), WRITES),
    (ReturnsPixels(lambda p, x: x.long()), "must return floating-point numbers"),
    (ReturnsPrompt(lambda p, x: None), "distort of ReturnsPrompt returned NoneType"),
    (ReturnsPrompt(lambda p, x: replace(x, ids=(*x.ids[:-1], -1))), "the id -1, and must return"),
    (ReturnsPrompt(lambda p, x: replace(x, ids=(*x.ids[:-1], 10**6))), "the id 1000000"),
    (ReturnsPrompt(without_one_image_token), "image tokens where .* all of them"),
    (ReturnsPrompt(lambda p, x: x.without_image()), "declare removes_image = True"),
    (ReturnsLogits(lambda p, x: (x.mul_(2), {})), WRITES),
    (ReturnsLogits(lambda p, x: (x.half(), {})), "must return torch.float64, or a wider type"),
    (ReturnsLogits(lambda p, x: (x, {"before": x})), "does not declare stateful = True"),
    (ReturnsLogits(lambda p, x: (x - math.inf, {})), "ReturnsLogits rule every token out"),
    (CarriesState(lambda p, x: (x, None)), "state of CarriesState must be a mapping"),
    (CarriesState(lambda p, x: (x, {"n": torch.zeros(1)})), "as 'n', .* " + ROWS_FIRST),
    (ReturnsFactor(lambda p, x: 0.5), "scale of ReturnsFactor returned float"),
    (ReturnsFactor(lambda p, x: (x.logits.new_ones(1), {})), r"returned shape \(1,\), and must"),
    (ReturnsFactor(lambda p, x: (x.logits[:, 0], {"n": 1})), "holds int as 'n'"),
    (ReturnsAllowed(lambda p, x: None), "allowed of ReturnsAllowed returned NoneType"),
    (ReturnsAllowed(lambda p, x: (x > 0)[:1]), r"allowed of ReturnsAllowed returned shape \(1,"),
    (ReturnsAllowed(lambda p, x: (x > 0).long()), "must return True or False"),
    (ReturnsAllowed(lambda p, x: x > math.inf), "the constraint of this test and contrast rule"),
    (ReturnsLayers(lambda p, n: {}), "with one at least"),
    (ReturnsLayers(lambda p, n: {"a": n + 1}), r"reads a out after \d layers, but the decoder has"),
    (ReturnsLayers(lambda p, n: {"a": -1}), "reads a out after -1 layers"),
    (ReturnsLayers(lambda p, n: {"original": 1}), "texts other than 'original'"),
    (ReturnsPositions(lambda p, x: x.add_(1).double()), WRITES),
    (ReturnsPositions(lambda p, x: x.half()), "positions of torch.float32 or a wider type"),
    (
        ReturnsAnswers(lambda p, d: d.select(d.prompt, torch.tensor([3])) and []),
        r"a loop chooses among rows 0 to 0, got \[3\]",
    ),
    (
        ReturnsAnswers(
            lambda p, d: d.extend(d.prompt, torch.tensor([[1]]), parents=torch.tensor([5])) and []
        ),
        r"a loop chooses among rows 0 to 0, got \[5\]",
    ),
    (ReturnsAnswers(lambda p, d: None), "run of ReturnsAnswers returned NoneType"),
    (ReturnsAnswers(lambda p, d: [cdkit.Hypothesis((-3,), 0.0)]), "the token -3"),
    (ReturnsAnswers(lambda p, d: [cdkit.Hypothesis((1,) * 99, 0.0)]), "an answer of 99 tokens"),
)


@pytest.mark.parametrize(("part", "why"), FAULTY, ids=[why for _, why in FAULTY])
def test_a_faulty_result_is_refused(part: Any, why: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=why):
        answer(with_part(part))


def test_the_plain_algorithm_refuses_it_too() -> None:
    part, why = ReturnsSegment(lambda p, s: s.changed(logits=s.logits[..., :1])), "logits of shape"
    with pytest.raises(cdkit.CdkitError, match=why):
        answer(with_part(part), optimize=False)


def test_beams_that_nothing_is_left_for() -> None:
    """Beam search makes NaN of them before the processors see them."""
    part, why = ReturnsAllowed(lambda p, x: x > math.inf), "contrast rule every token out"
    with pytest.raises(cdkit.CdkitError, match=why):
        answer(with_part(part), num_beams=2)


@pytest.mark.parametrize(
    "part", [ReturnsStates(), RemembersStates(), ReturnsSegment(), ReturnsPixels(), ReturnsPrompt()]
)
def test_a_part_that_returns_what_it_gets_is_fine(part: Any) -> None:
    answer(with_part(part))


def declares(cls: Any, **names: Any) -> Any:
    return type("Declares", (cls,), names)()


DECLARED: tuple[tuple[Callable[[], object], str], ...] = (
    (lambda: with_part(ReturnsStates(layers=(0.9, 0.1))), r"layers of ReturnsStates .* \[0.9, 0.1"),
    (lambda: with_part(ReturnsStates(layers=(2.0, 9.0))), r"layers of ReturnsStates .*9.0\]"),
    (lambda: with_part(ReturnsStates(branches=None)), "branches of ReturnsStates must be a tuple"),  # type: ignore[arg-type]
    (lambda: with_part(declares(ReturnsStates, site="attention")), "site of Declares must be one"),
    (lambda: with_part(declares(ReturnsStates, rows="last")), "rows of Declares must be one of ev"),
    (lambda: with_part(declares(ReturnsStates, reads="module_input")), "reads of Declares must be"),
    (lambda: with_part(declares(ReturnsStates, reads=frozenset({"input"}))), "reads of Declares"),
    (lambda: with_part(declares(ReturnsStates, prompt_site="mpl")), "prompt_site of Declares must"),
    (lambda: with_part(declares(ReturnsStates, switch="alpha")), "must be one of its parameters"),
    (lambda: with_part(declares(ReturnsSegment, layers=(0.5, 0.5))), "layers of Declares must be"),
    (lambda: with_part(declares(ReturnsSegment, modifies="logits")), "modifies of Declares must"),
    (lambda: with_part(declares(ReturnsLogits, stateful=None)), "stateful of Declares must be Tru"),
    (lambda: with_part(declares(ReturnsLogits, switch="beta")), "one of its parameters: make"),
    (lambda: with_part(declares(ReturnsAnswers, modes=["beems"])), "modes of Declares must hold"),
    (lambda: with_part(ReturnsAllowed(on_empty="ignore")), "on_empty of ReturnsAllowed must be"),
)


@pytest.mark.parametrize(("make", "why"), DECLARED, ids=[why for _, why in DECLARED])
def test_a_faulty_declaration_is_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=why):
        make()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"state_interventions": (ReturnsSegment(),)}, "must be made of StateInt.*ReturnsSegment"),
        ({"state_interventions": ReturnsStates()}, "state_interventions of x must be a tuple"),
        ({"calibrator": ReturnsPositions}, "got the class ReturnsPositions"),
        ({"combiner": None}, "combiner of x must be made of LogitCombiner, got None"),
    ],
)
def test_a_part_in_another_place_is_refused(fields: Mapping[str, Any], why: str) -> None:
    """A stand-in, since this suite checks the types of the real class already."""
    with pytest.raises(cdkit.CdkitError, match=why):
        check_fields_of(SimpleNamespace(**{**vars(PLAIN), "name": "x", **fields}))


def test_a_part_without_the_decorator_is_refused() -> None:
    class Bare(cdkit.StateIntervention):
        """No dataclass."""

        site = "mlp"
        branches = ("original",)

        def intervene(self, states: cdkit.StateSegment) -> Tensor:
            return states.states

    with pytest.raises(cdkit.CdkitError, match="Bare must be a frozen dataclass"):
        with_part(Bare())

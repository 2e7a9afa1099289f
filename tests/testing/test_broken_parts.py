"""The contract suite finds each broken promise of all other parts, and of parts as values."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.combiner import State
from cdkit.interfaces.distortion import Modified
from cdkit.interfaces.schedule import Signals
from cdkit.testing import (
    check_calibrator,
    check_combiner,
    check_readout,
    check_schedule,
    check_strategy,
    variants,
)

pytestmark = pytest.mark.contract


@dataclass(frozen=True)
class Positions(cdkit.PositionCalibrator):
    """Does what it is given."""

    change: Callable[[Tensor, Tensor], Tensor]
    is_idle: bool = False

    @property
    def is_identity(self) -> bool:
        return self.is_idle

    def calibrate(self, positions: Tensor, image_index: Tensor) -> Tensor:
        return self.change(positions, image_index)


def ordinary(positions: Tensor, image_index: Tensor) -> Tensor:
    return positions.double()


POSITIONS: list[tuple[Callable[[Tensor, Tensor], Tensor], str]] = [
    (lambda p, i: -p.double(), "positions of text never decrease"),
    (lambda p, i: p.float(), "positions are float64"),
    (lambda p, i: p[:, 1:].double(), "one position a token and axis"),
    (lambda p, i: p.double() / 0.0, "positions are finite"),
    (lambda p, i: p.double() / p.shape[1], "a position depends on no later token"),
    (
        lambda p, i: p * (1 + 0.01 * i.sum(1, keepdim=True)).double(),
        "a position depends on no later token",
    ),
    (lambda p, i: p.double() / (2 + i[0, 0]), "rows of the batch are independent"),
    (lambda p, i: p.double() ** 2, "a constant added to all positions only moves them"),
    (ordinary, "is_identity says whether every distance stays"),
    (
        lambda p, i: p + (torch.arange(3.0) / 8 if p.ndim == 3 else i.cumsum(1) / 8).double(),
        "the axes of text stay equal",
    ),
]


@pytest.mark.parametrize(("change", "promise"), POSITIONS)
def test_positions(change: Callable[[Tensor, Tensor], Tensor], promise: str) -> None:
    @dataclass(frozen=True)
    class Here(Positions):
        """Hypothesis again by pickle, as a lambda would not be."""

        change: Any = None

        def __reduce__(self) -> Any:
            return (_same, (id(self),))

    part = Here(change)
    _kept[id(part)] = part
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_calibrator(part)


_kept: dict[int, Any] = {}


def _same(key: int) -> Any:
    return _kept[key]


def test_an_idle_calibrator() -> None:
    check_calibrator(Positions(ordinary, is_idle=True))


def test_a_calibrator_that_is_not_steady() -> None:
    Scaled: Any = cdkit.CALIBRATORS["scaled_positions"]

    @dataclass(frozen=True)
    class Steady(Scaled):  # type: ignore[misc]
        """Says that it is."""

        @property
        def constant_after_prompt(self) -> bool:
            return True

        def __reduce__(self) -> Any:
            return (_same, (id(self),))

    drifts = Steady(text_step=0.5)
    _kept[id(drifts)] = drifts
    with pytest.raises(
        AssertionError, match="constant_after_prompt = True text after the last image moves"
    ):
        check_calibrator(drifts)


@dataclass(frozen=True)
class Combiner(cdkit.LogitCombiner):
    """Does what it is given."""

    stateful: ClassVar[bool] = False
    change: Callable[..., Any]
    read: bool = True
    is_idle: bool = False

    @property
    def is_identity(self) -> bool:
        return self.is_idle

    def uses(self, name: str) -> bool:
        return self.read

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: State
    ) -> tuple[Tensor, State]:
        result: tuple[Tensor, State] = self.change(original, others, step, state)
        return result


def as_it_is(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original, state


def nan(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original * math.nan, state


def none_left(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original.masked_fill(original < 2.5, -math.inf), state


def batch_mean(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original - original.mean(dim=0), state


def stateful(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original * (1 + step), state


def keeps_state(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original, {"last": original}


def flat_state(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original, {"last": original.mean()}


def reads_others(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original + sum(others.values()), state


def adds_in_place(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original.add_(1), state


def narrow(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return original[:, 1:], state


def twice(original: Tensor, others: Mapping[str, Tensor], step: int, state: State) -> Any:
    return 2 * original, state


@dataclass(frozen=True)
class Unweighed(Combiner):
    """Uses a branch with weight 0."""

    def weight(self, name: str) -> float:
        return 0.0


@dataclass(frozen=True)
class Switched(Combiner):
    """Has no parameter of that name."""

    switch: ClassVar[str] = "gain"


COMBINERS: list[tuple[Combiner, str]] = [
    (Combiner(nan), "combined logits are finite, or -inf"),
    (Combiner(none_left), "a token is left in every row"),
    (Combiner(batch_mean), "rows of the batch are independent"),
    (Combiner(stateful), "with stateful = False no step and no state counts"),
    (Combiner(keeps_state), "with stateful = False it keeps no state"),
    (Combiner(flat_state), "state tensors begin with the rows"),
    (Combiner(reads_others, False), "logits that it does not read (distorted) are unread"),
    (Combiner(adds_in_place), "nothing is written into what it is passed"),
    (Combiner(narrow), "the result has the shape of the logits"),
    (Combiner(twice, is_idle=True), "an identity returns the original"),
    (Unweighed(as_it_is), "weight is 0 for the branches that it does not use"),
    (Switched(as_it_is), "switch names a parameter"),
]


@pytest.mark.parametrize(("part", "promise"), COMBINERS, ids=[p for _, p in COMBINERS])
def test_combiners(part: Combiner, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_combiner(part)


def test_a_sound_combiner() -> None:
    check_combiner(Combiner(as_it_is, is_idle=True))


class Contrastive(Combiner):
    """Says that only differences count."""

    contrastive = True


def test_a_combiner_that_is_not_contrastive() -> None:
    check_combiner(Contrastive(as_it_is))
    with pytest.raises(AssertionError, match="with contrastive = True logits equal to the"):
        check_combiner(Contrastive(reads_others))


@dataclass(frozen=True)
class Schedule(cdkit.AlphaSchedule):
    """Does what it is given."""

    reads_attention: ClassVar[bool] = False
    change: Callable[[Signals, int, State], tuple[Tensor, State]]

    def scale(self, signals: Signals, *, step: int, state: State) -> tuple[Tensor, State]:
        return self.change(signals, step, state)


class Looking(Schedule):
    """Asks for the attention."""

    reads_attention = True


class Unsure(Schedule):
    """Does not say what it reads."""

    reads_attention: ClassVar[Any] = None


def one(signals: Signals, step: int, state: State) -> Any:
    return torch.ones_like(signals.logits[:, 0]), state


def mass(signals: Signals, step: int, state: State) -> Any:
    assert signals.image_mass is not None
    total = state.get("total", 0 * signals.image_mass) + signals.image_mass
    return (signals.image_mass >= total / (step + 1)).double(), {"total": total}


def one_for_all(signals: Signals, step: int, state: State) -> Any:
    return torch.ones(1).double(), state


def negative(signals: Signals, step: int, state: State) -> Any:
    return signals.logits.amax(dim=-1) - 3, state


def exploding(signals: Signals, step: int, state: State) -> Any:
    return one(signals, step, state)[0] * (1e300 if step < 60 else math.inf), state


def of_the_batch(signals: Signals, step: int, state: State) -> Any:
    return signals.logits.amax(dim=-1).softmax(dim=0), state


def counting(signals: Signals, step: int, state: State) -> Any:
    return one(signals, step, state)[0], {"count": torch.tensor([float(step)])}


def rewriting(signals: Signals, step: int, state: State) -> Any:
    signals.logits.zero_()
    return one(signals, step, state)


BAD_SCHEDULES: list[tuple[Schedule, str]] = [
    (Unsure(one), "reads_attention is True or False"),
    (Schedule(one_for_all), "it gives one factor for each row"),
    (Schedule(negative), "factors are finite, 0 or more"),
    (Schedule(exploding), "factors are finite, 0 or more"),
    (Schedule(of_the_batch), "rows of the batch are independent"),
    (Schedule(counting), "state tensors begin with the rows"),
    (Schedule(rewriting), "nothing is written into what it is passed"),
]


@pytest.mark.parametrize(("part", "promise"), BAD_SCHEDULES)
def test_schedules(part: Schedule, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_schedule(part)


def test_sound_schedules() -> None:
    check_schedule(Schedule(one))
    check_schedule(Looking(mass))


@dataclass(frozen=True)
class Readout(cdkit.LayerReadout):
    """Does what it is given."""

    found: tuple[tuple[str, int], ...]

    def layers(self, count: int) -> Mapping[str, int]:
        return dict(self.found)


def test_readouts() -> None:
    check_readout(Readout((("last", 8), ("embeddings", 0))))
    for found, promise in (
        ((), "it names a layer"),
        ((("original", 1),), "no layer is called 'original'"),
        ((("deep", 20),), "its states have passed 0 to 8 layers"),
    ):
        with pytest.raises(AssertionError, match=promise):
            check_readout(Readout(found))


# ---- parts are values ----------------------------------------------------------------------------


@dataclass
class Thawed(cdkit.PixelDistortion):
    """Not frozen."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


@dataclass(frozen=True)
class Undocumented(cdkit.PixelDistortion):
    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


@dataclass(frozen=True)
class Listed(cdkit.PixelDistortion):
    """A list cannot be hashed."""

    values: Any = (1,)

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


@dataclass(frozen=True, eq=False)
class Unequal(cdkit.PixelDistortion):
    """Without equality."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


@dataclass(frozen=True)
class Greedy(cdkit.PixelDistortion):
    """Declares what pixels cannot touch."""

    modifies: ClassVar[frozenset[Modified]] = frozenset({"pixels", "values"})

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


VALUES: list[tuple[Any, str]] = [
    (Thawed(), "it is a frozen dataclass"),
    (Undocumented(), "it has a docstring"),
    (Listed([1]), "it can be hashed"),
    (Listed(lambda: 1), "it can be pickled"),
    (Unequal(), "equal parameters make equal parts"),
    (Greedy(), "modifies is a frozenset out of ['pixels']"),
    (cdkit.DISTORTIONS, "it is a frozen dataclass"),
]


@pytest.mark.parametrize(("part", "promise"), VALUES, ids=[p for _, p in VALUES])
def test_values(part: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(part)


def test_a_stranger() -> None:
    @dataclass(frozen=True)
    class Stranger:
        """None of the kinds."""

        def __reduce__(self) -> Any:
            return (_same, (0,))

    _kept[0] = Stranger()  # its checks as a value need it to be found again
    with pytest.raises(AssertionError, match="must subclass PixelDistortion, FeatureDistortion"):
        check_strategy(_kept[0])
    for check, base in (
        (check_calibrator, "PositionCalibrator"),
        (check_combiner, "LogitCombiner"),
        (check_readout, "LayerReadout"),
        (check_schedule, "AlphaSchedule"),
    ):
        with pytest.raises(AssertionError, match=f"it subclasses {base}"):
            check(_kept[0])


def test_variants_try_every_choice() -> None:
    found = set(variants(cdkit.DISTORTIONS["value_mean_mask"]))
    default = cdkit.DISTORTIONS["value_mean_mask"]()
    assert default in found and len(found) == 1 + 1 + 2  # value_mean: 1 other; scope: 2 others

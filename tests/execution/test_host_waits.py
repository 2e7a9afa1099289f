"""How often a step makes Python wait for a GPU: counted on the CPU, by what would wait there."""

import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from generation.presets import ALL, in_turn
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StoppingCriteria, StoppingCriteriaList

import cdkit
from cdkit.generation import generate
from cdkit.strategies.combiners.contrast import Contrast

READS = {"_local_scalar_dense", "equal", "allclose", "nonzero", "masked_select", "bincount"}
"""What they give depends on a number on the device: a truth value, a number, a shape."""
FROM_HOST = {"lift_fresh"}
"""`torch.tensor` and `as_tensor` of Python's numbers: on the way to a GPU such a copy waits."""
TO_HOST = {"tolist", "cpu", "numpy", "__array__"}
"""Not operators on the CPU, where there is nothing to bring."""
OURS, STOCK = (str(Path(inspect.getfile(package)).parent) for package in (cdkit, transformers))


class HostWaits:
    """Counts what would make the host wait for a GPU, by the line of code that asked for it."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._modes = ExitStack()

    def __enter__(self) -> "HostWaits":
        self._modes.enter_context(_Functions(self.note))
        self._modes.enter_context(_Operators(self.note))
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()

    def note(self, name: str) -> None:
        frame = inspect.currentframe()
        while frame is not None and not frame.f_code.co_filename.startswith((OURS, STOCK)):
            frame = frame.f_back
        line = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "a test"
        self.seen[f"{name} at {line}"] += 1


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        if name in READS | FROM_HOST or name.startswith(("unique", "_unique")):
            self._note(name)
        if name == "repeat_interleave" and func.name().endswith(".Tensor"):
            self._note(name)  # so many times each: a shape that the device knows
        masks = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        # a single value put in by a mask is a masked_fill, and waits for nothing
        fills = name.startswith("index_put") and args[2].numel() == 1
        if not fills and any(isinstance(m, Tensor) and m.dtype == torch.bool for m in masks):
            self._note(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in TO_HOST:
            self._note(name)
        return func(*args, **(kwargs or {}))


X = torch.tensor([3.0, 0.0, 1.0])
MASK = X > 0


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda: bool(MASK.any()), "_local_scalar_dense"),
        (lambda: int(X.sum()), "_local_scalar_dense"),
        (lambda: float(X[0]), "_local_scalar_dense"),
        (lambda: X.max().item(), "_local_scalar_dense"),
        (lambda: X.tolist(), "tolist"),
        (lambda: X.cpu(), "cpu"),
        (lambda: X.numpy(), "numpy"),
        (lambda: X.nonzero(), "nonzero"),
        (lambda: X[MASK], "index by a mask"),
        (lambda: X.masked_select(MASK), "masked_select"),
        (lambda: X.clone().index_put_((MASK,), torch.ones(2)), "index_put_ by a mask"),
        (lambda: torch.equal(X, X + 1), "equal"),
        (lambda: torch.allclose(X, X + 1), "allclose"),
        (lambda: torch.unique(X), "_unique2"),
        (lambda: X.repeat_interleave(MASK.long()), "repeat_interleave"),
        (lambda: torch.tensor([1, 2]), "lift_fresh"),
        (lambda: torch.as_tensor(7), "lift_fresh"),
    ],
)
def test_what_waits_is_counted(work: Callable[[], object], name: str) -> None:
    with HostWaits() as waits:
        work()
    assert any(seen.startswith(f"{name} at ") for seen in waits.seen), waits.seen


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.where(MASK, X, 0.0),
        lambda: X.masked_fill(MASK, 1.0),
        lambda: X.clone().index_put_((MASK,), torch.zeros(())),
        lambda: X[1:] + X[torch.arange(2)],
        lambda: torch.full((), 7),
        lambda: X.repeat_interleave(2),
        lambda: X.softmax(dim=0).cumsum(dim=0).topk(2),
    ],
)
def test_what_does_not_wait_is_not(work: Callable[[], object]) -> None:
    with HostWaits() as waits:
        work()
    assert not waits.seen


class Steps(StoppingCriteria):
    """Notes how much had been seen when each token was chosen."""

    def __init__(self, waits: HostWaits) -> None:
        self.waits, self.totals = waits, list[Counter[str]]()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.totals.append(self.waits.seen.copy())
        return input_ids.new_zeros(input_ids.shape[0], dtype=torch.bool)


def steps_of(model: Any, inputs: Any, tokens: int = 6, **asked: Any) -> list[Counter[str]]:
    """What each step waits for, from the second with a cache on: the first may find things out."""
    torch.manual_seed(0)
    with torch.no_grad(), HostWaits() as waits:
        steps = Steps(waits)
        model.generate(
            **inputs,
            max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList([steps]),
            **{"do_sample": False} | asked,
        )
    assert len(steps.totals) == tokens
    pairs = zip(steps.totals[1:-1], steps.totals[2:], strict=True)
    return [after - before for before, after in pairs]


def every(steps: list[Counter[str]]) -> int:
    """How often each step waits: all alike, however long the answer is by then."""
    totals = [step.total() for step in steps]
    assert len(set(totals)) == 1, totals
    return totals[0]


def in_cdkit(step: Counter[str]) -> Counter[str]:
    """The files of cdkit that wait."""
    found = Counter[str]()
    for line, count in step.items():
        if STOCK not in line:
            found[line.rsplit("/", 1)[-1].split(":")[0]] += count
    return found


OF_PARTS = {"nearest_image_token.py"}
"""Parts that ask the device once a step: how many tokens are plausible, to compare these alone."""


def check_steps(steps: list[Counter[str]], plain: int, guard: int) -> None:
    """Each step waits as often as a stock one, `guard` times more at most, and once for a part."""
    asks = 0
    for step in steps:
        own = in_cdkit(step)
        asks = sum(own.pop(file, 0) for file in OF_PARTS)
        assert own in (Counter(), Counter({"guard.py": guard})) and asks <= 1, step
    assert every(steps) <= plain + guard + asks


MODES: dict[str, dict[str, Any]] = {"greedy": {}, "sample": {"do_sample": True}}
RUNS = [
    (name, mode)
    for name in ALL
    for mode in MODES
    if mode in cdkit.load(name).modes and cdkit.load(name).loop is None
]


@pytest.fixture(scope="module")
def inputs(make_inputs: Any) -> Any:
    """A batch that is padded on the left."""
    made = make_inputs("is there a cat ?", "w1", "user w5 w6 w7 w8 w9")
    assert not made["attention_mask"].all()
    return made


@pytest.fixture(scope="module")
def plain(model: Any, inputs: Any) -> dict[str, int]:
    """How often a step of stock `generate` waits: have all ended, is a mask needed."""
    waits = {mode: every(steps_of(model, inputs, **asked)) for mode, asked in MODES.items()}
    assert all(0 < count <= 3 for count in waits.values())
    return waits


@pytest.mark.parametrize(("name", "mode"), in_turn(RUNS, 3))
def test_a_step_waits_for_the_guard_alone(
    name: str, mode: str, model: Any, processor: Any, inputs: Any, plain: dict[str, int]
) -> None:
    """The guard must know that a token is left, before one is chosen."""
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        steps = steps_of(model, inputs, **MODES[mode])
    check_steps(steps, plain[mode], guard=1)


@pytest.mark.parametrize(("name", "mode"), in_turn(RUNS, 0))
def test_a_guard_that_puts_off_its_question_waits_for_nothing(
    name: str,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    processor: Any,
    inputs: Any,
    plain: dict[str, int],
) -> None:
    """As on a GPU, where it asks once, after the answer."""
    monkeypatch.setattr(generate, "WAITS_FOR_NOTHING", frozenset())
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        steps = steps_of(model, inputs, **MODES[mode])
    check_steps(steps, plain[mode], guard=0)


@pytest.mark.parametrize("once", [False, True])
def test_a_strategy_that_reads_numbers_back_is_seen(
    once: bool,
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    processor: Any,
    inputs: Any,
    plain: dict[str, int],
) -> None:
    """In every step; or more often, the longer the answer is."""
    stock, calls = Contrast.combine, list[float]()

    def reading(self: Any, original: Tensor, *args: Any, **kwargs: Any) -> Any:
        reads = 1 if once else 1 + len(calls)
        calls.extend([float(original[0, 0]) for _ in range(reads)])
        return stock(self, original, *args, **kwargs)

    monkeypatch.setattr(Contrast, "combine", reading)
    with cdkit.attach(model, cdkit.load("cmac"), processor=processor):
        steps = steps_of(model, inputs)
    with pytest.raises(AssertionError):
        check_steps(steps, plain["greedy"], guard=1)
    if not once:
        with pytest.raises(AssertionError):
            every(steps)


@pytest.mark.parametrize("name", ["cmac", "vcd"])
def test_what_a_prompt_waits_for_does_not_grow_with_the_batch(
    name: str, model: Any, processor: Any, make_inputs: Any
) -> None:
    """The image tokens of all prompts are counted at once."""

    def first(*questions: str) -> Counter[str]:
        inputs, names = make_inputs(*questions), [str(row) for row in range(len(questions))]
        with cdkit.attach(model, cdkit.load(name), processor=processor, sample_ids=names):
            with torch.no_grad(), HostWaits() as waits:
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return in_cdkit(waits.seen)

    first("w1")  # what is found out once in a process
    two, four = first("w1", "w2 w3"), first("w1", "w2 w3", "w4", "w5 w6")
    assert two == four and 0 < two.total() < 20, (two, four)


LOOPS = [name for name in ALL if cdkit.load(name).loop is not None]


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_a_methods_own_waits_no_more_often_as_it_goes_on(
    name: str, model: Any, processor: Any, inputs: Any
) -> None:
    """It goes prompt by prompt and keeps its beams on the host: some waits a prompt and token."""

    def total(tokens: int) -> int:
        with torch.no_grad(), HostWaits() as waits:
            model.generate(**inputs, max_new_tokens=tokens, num_beams=2, do_sample=False)
        return waits.seen.total()

    with cdkit.attach(model, cdkit.load(name), processor=processor):
        totals = [total(tokens) for tokens in (2, 5, 8)]
    prompts = inputs["input_ids"].shape[0]
    per_token = [(b - a) / 3 / prompts for a, b in itertools.pairwise(totals)]
    assert all(0 < waits <= 20 for waits in per_token), per_token

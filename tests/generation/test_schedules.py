"""Schedules under `generate`: state, refusals, what is traced, and how several go together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import cdkit
from cdkit.interfaces.combiner import State
from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
VCD = cdkit.load("vcd", beta=0.05)
MakeInputs = Callable[..., dict[str, Tensor]]
LogitsOf = Callable[..., Tensor]
Factor = tuple[Float[Tensor, " rows"], State]


@dataclass(frozen=True)
class Constant(AlphaSchedule):
    """The same factor at every step."""

    reads_attention: ClassVar[bool] = False
    by: float = 1.0

    def scale(self, signals: Signals, *, step: int, state: State) -> Factor:
        assert signals.image_logits is None and signals.image_mass is None
        return torch.full_like(signals.logits[:, 0], self.by), state


@dataclass(frozen=True)
class Running(AlphaSchedule):
    """The running sum of the best logit: another one for each beam and row."""

    reads_attention: ClassVar[bool] = False

    def scale(self, signals: Signals, *, step: int, state: State) -> Factor:
        total = signals.logits.amax(dim=-1).exp() + state.get("total", 0.0)
        return total / (1 + total), {"total": total}


@dataclass(frozen=True)
class Attended(AlphaSchedule):
    """The share of attention that the image gets."""

    reads_attention: ClassVar[bool] = True

    def scale(self, signals: Signals, *, step: int, state: State) -> Factor:
        assert signals.image_logits is not None and signals.image_mass is not None
        assert signals.image_logits.shape == signals.image_mass.shape == signals.logits.shape[:1]
        return signals.image_mass, state


def scheduled(*schedules: AlphaSchedule, method: Method = VCD) -> Method:
    return replace(method, schedules=schedules)


def ids_of(model: Any, method: Method, inputs: dict[str, Tensor], **asked: Any) -> list[list[int]]:
    names = [str(row) for row in range(len(inputs["input_ids"]))]
    with cdkit.attach(model, method, sample_ids=asked.pop("sample_ids", names)):
        out = model.generate(**inputs, **{"max_new_tokens": 5, "do_sample": False, **asked})
    answers: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


@pytest.mark.parametrize(
    ("factors", "alpha"), [((1.0,), 1.0), ((0.25,), 0.25), ((2.0, 0.5, 3.0), 3.0), ((), 1.0)]
)
def test_several_multiply(
    model: Any,
    make_inputs: MakeInputs,
    logits_of: LogitsOf,
    factors: tuple[float, ...],
    alpha: float,
) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, scheduled(*map(Constant, factors))):
        have = logits_of(model, inputs)
    with cdkit.attach(model, cdkit.load("vcd", beta=0.05, alpha=alpha)):
        want = logits_of(model, inputs)
    torch.testing.assert_close(have, want, rtol=0, atol=1e-5)


def test_a_factor_of_zero_is_the_constraint_alone(
    model: Any, make_inputs: MakeInputs, logits_of: LogitsOf
) -> None:
    """To the bit, and with several branches."""
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load("plausibility", beta=0.05)):
        want = logits_of(model, inputs)
    many = cdkit.load("cmac_vcd", beta=0.05)
    for method in (VCD, replace(many, calibrator=None)):
        with cdkit.attach(model, scheduled(Constant(3.0), Constant(0.0), method=method)):
            assert torch.equal(logits_of(model, inputs), want)


def test_branches_keep_the_proportion_of_their_alphas(
    model: Any, make_inputs: MakeInputs, logits_of: LogitsOf
) -> None:
    inputs = make_inputs(*QUESTIONS)
    logits = []
    for alpha, others, schedules in (
        (3.0, (("noise", 1.0),), (Constant(0.5),)),
        (1.5, (("noise", 0.5),), ()),
    ):
        method = cdkit.load("cmac_vcd", alpha=alpha, alphas=others, beta=0.05)
        with cdkit.attach(model, replace(method, schedules=schedules)):
            logits.append(logits_of(model, inputs))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_the_trace(model: Any, make_inputs: MakeInputs) -> None:
    """The factor of each row and step; the branches' logits as they came."""
    inputs, asked = make_inputs(*QUESTIONS), {"max_new_tokens": 4, "do_sample": False}
    gate = cdkit.SCHEDULES["ramp"](start=0.0, end=2.0, steps=2)  # type: ignore[call-arg]
    with cdkit.attach(model, scheduled(gate, Constant(0.5)), trace=("logits",)) as run:
        model.generate(**inputs, **asked)
    assert [step.alpha_scale.tolist() for step in run.trace.steps] == [  # type: ignore[union-attr]
        [0, 0], [0.5, 0.5], [1, 1], [1, 1],
    ]  # fmt: skip
    for step in run.trace.steps:
        assert step.combined is not None and step.alpha_scale is not None
        original, distorted = step.logits["original"], step.logits["distorted"]
        wanted = original + step.alpha_scale[:, None] * (original - distorted)
        left = step.combined.isfinite()
        torch.testing.assert_close(step.combined[left], wanted[left], rtol=0, atol=1e-9)
        assert not torch.allclose(original, distorted, atol=1e-3)
    with cdkit.attach(model, VCD, trace=("logits",)) as run:
        model.generate(**inputs, **asked)
    assert all(step.alpha_scale is None for step in run.trace.steps)


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}])
@pytest.mark.parametrize("part", [Running(), Attended()], ids=["state", "attention"])
def test_a_batch_is_its_rows_alone_in_every_mode(
    model: Any, make_inputs: MakeInputs, part: AlphaSchedule, asked: dict[str, Any]
) -> None:
    method = scheduled(part, method=cdkit.load("vcd", beta=0.05, alpha=4.0))
    both = ids_of(model, method, make_inputs(*QUESTIONS), **asked)
    for row, question in enumerate(QUESTIONS):
        alone = ids_of(model, method, make_inputs(question), sample_ids=[str(row)], **asked)
        assert alone == [both[row]]


def test_state_goes_with_the_beams(model: Any, make_inputs: MakeInputs) -> None:
    """Each beam's sum is over its own tokens: against beam search written out here."""
    alpha, steps, width = 4.0, 4, 3
    method = scheduled(Running(), method=cdkit.load("vcd", beta=0.0, alpha=alpha))
    inputs = make_inputs(QUESTIONS[0])
    moved = False

    def branches(answer: list[int]) -> tuple[Tensor, Tensor]:
        ids = torch.cat((inputs["input_ids"], torch.tensor([answer], dtype=torch.long)), dim=1)
        plain = cdkit.load("vcd")
        with cdkit.attach(model, plain, sample_ids=["a"], trace=("logits",)) as run:
            with torch.no_grad():
                model(
                    input_ids=ids,
                    pixel_values=inputs["pixel_values"],
                    logits_to_keep=1,
                    use_cache=False,
                )
        logits = run.trace.steps[0].logits
        return logits["original"][0], logits["distorted"][0]

    beams: list[tuple[float, list[int], float]] = [(0.0, [], 0.0)]
    for step in range(steps):
        longer = []
        for parent, (score, answer, total) in enumerate(beams):
            original, distorted = branches(answer)
            total += original.max().exp().item()
            scale = total / (1 + total)
            best = (original + alpha * scale * (original - distorted)).log_softmax(-1).topk(width)
            longer += [
                (score + float(value), [*answer, int(token)], total, parent)
                for value, token in zip(best.values, best.indices, strict=True)
            ]
        longer = sorted(longer, key=lambda beam: -beam[0])[:width]
        moved |= step > 0 and [beam[3] for beam in longer] != list(range(width))
        beams = [beam[:3] for beam in longer]
    assert moved  # else no state had to follow
    asked = {"max_new_tokens": steps, "num_beams": width, "num_return_sequences": width}
    have = ids_of(model, method, inputs, sample_ids=["a"], **asked)
    assert have == [answer for _, answer, _ in beams]


# ---- refusals ------------------------------------------------------------------------------------


def test_a_schedule_needs_a_branch() -> None:
    combiner = cdkit.load("plausibility").combiner
    with pytest.raises(
        cdkit.CdkitError,
        match="Constant scales alpha, but lone contrasts with no branch: give it one",
    ):
        Method("lone", combiner, schedules=(Constant(),))


def test_a_schedule_needs_a_contrast() -> None:
    with pytest.raises(
        cdkit.CdkitError,
        match="Constant scales alpha, but Summed does not take differences to the original "
        "branch; use the combiner 'contrast'",
    ):
        Method("sum", Summed(), branches=VCD.branches, schedules=(Constant(),))


@dataclass(frozen=True)
class Summed(cdkit.LogitCombiner):
    """All logits added up: there is no difference to scale."""

    stateful: ClassVar[bool] = False

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self, original: Tensor, others: Any, *, step: int, state: State
    ) -> tuple[Tensor, State]:
        return original + sum(others.values()), state


@pytest.mark.parametrize("name", ["m3id", "imccd_chair"])
def test_a_plain_call_has_no_steps(model: Any, make_inputs: MakeInputs, name: str) -> None:
    with cdkit.attach(model, cdkit.load(name)):
        with pytest.raises(
            cdkit.CdkitError, match=f"{name} depends on the step; a plain call has none: generate"
        ):
            with torch.no_grad():
                model(**make_inputs(QUESTIONS[0]))


def test_without_a_cache_there_is_no_state(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, scheduled(Running())):
        with pytest.raises(
            cdkit.CdkitError,
            match="vcd cannot run with use_cache=False: what it carries from step to step lives in "
            "the cache; leave it out",
        ):
            model.generate(**make_inputs(QUESTIONS[0]), max_new_tokens=2, use_cache=False)


def test_a_prompt_that_ends_with_its_image(model: Any, make_inputs: MakeInputs) -> None:
    """No text row looks at it: refused where the attention is read, and only there."""
    inputs = make_inputs("is there a cat ? <image>")
    end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1
    cut = inputs | {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
    with cdkit.attach(model, scheduled(Attended())):
        with pytest.raises(
            cdkit.CdkitError,
            match="prompt 0 ends with an image, but vcd reads where its last text token looks; put "
            "the question after the image",
        ):
            model.generate(**cut, max_new_tokens=2)
    with cdkit.attach(model, scheduled(Constant())):
        model.generate(**cut, max_new_tokens=2, do_sample=False)


def test_unknown_text_needs_a_processor(model: Any) -> None:
    with pytest.raises(
        cdkit.CdkitError, match="unknown_image writes text into the prompt: pass processor="
    ):
        cdkit.attach(model, cdkit.load("vdd_unk"))


def test_the_unknown_token_of_a_real_tokenizer(
    model: Any, make_inputs: MakeInputs, processor: Any, logits_of: LogitsOf
) -> None:
    """One `<unk>`, not its letters: the same as a prompt that was written with it."""
    inputs = make_inputs(QUESTIONS[0])
    method = cdkit.load("vdd_unk")
    with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
        logits_of(model, inputs, max_new_tokens=1)
    text = f"USER: <unk> {QUESTIONS[0]} ASSISTANT:"
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    assert (ids == processor.tokenizer.unk_token_id).sum() == 1
    with torch.no_grad():
        want = model(input_ids=ids).logits[:, -1]
    have = run.trace.steps[0].logits["distorted"]
    torch.testing.assert_close(have, want, rtol=0, atol=1e-9)


PARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    ("attention_gate", {"window": 0}, "window must be 1 step or more, got 0"),
    ("attention_gate", {"history": "beam"}, "history must be one of first, last, all, got 'beam'"),
    ("attention_gate", {"quantity": "sum"}, "quantity must be one of logits, mass, got 'sum'"),
    ("growth", {"rate": 0.0}, "rate must be a finite number > 0, got 0.0"),
    ("growth", {"first_step": -1}, "first_step must be 0 or more, got -1"),
    ("growth", {"cap": 0.0}, "cap must be a finite number > 0, got 0.0"),
    ("confidence_gate", {"threshold": 0.0}, "threshold must be a finite number > 0, got 0.0"),
    ("confidence_gate", {"threshold": 1.5}, r"threshold must be in \(0, 1\], got 1.5"),
    ("ramp", {"start": -1.0}, "start must be a finite number >= 0, got -1.0"),
    ("ramp", {"end": float("nan")}, "end must be a finite number >= 0, got nan"),
    ("ramp", {"steps": 0}, "steps must be 1 or more, got 0"),
    (
        "unknown_image",
        {"text": " "},
        "text must not be empty; to put nothing there, use 'no_image'",
    ),
]


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(("kind", "fields", "message"), PARAMETERS)
def test_parameters(kind: str, fields: dict[str, Any], message: str) -> None:
    registry: Any = cdkit.SCHEDULES if kind in cdkit.SCHEDULES else cdkit.DISTORTIONS
    with pytest.raises(cdkit.CdkitError, match=message):
        registry[kind](**fields)


def test_a_text_that_the_tokenizer_leaves_out() -> None:
    unknown: Any = cdkit.DISTORTIONS["unknown_image"](text="...")  # type: ignore[call-arg]
    prompt = cdkit.Prompt((1, 7, 7, 2), (False, True, True, False), 0, 3, lambda text: ())
    with pytest.raises(cdkit.CdkitError, match=r"no token for text '\.\.\.'; choose another"):
        unknown.distort(prompt)
    assert Branch("unknown", (unknown,)).prompt == (unknown,)

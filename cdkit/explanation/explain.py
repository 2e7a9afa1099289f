"""`cdkit.explain`: answer one prompt with and without methods, and say what they did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from cdkit.attachment import Attachment, attach
from cdkit.errors import CdkitError, check_temperature
from cdkit.explanation.explained import PLAIN, ExplainedAnswer
from cdkit.explanation.explanation import Explanation
from cdkit.explanation.part_words import described_parts
from cdkit.explanation.shown_pixels import picture_views
from cdkit.explanation.traced_answer import (
    WHAT,
    decoded,
    end_tokens,
    explained_answer,
    layers_of,
    model_name,
    prompt_text,
    until_end,
)
from cdkit.generation.trace import Trace
from cdkit.interfaces.adapter_lookup import unwrap
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method
from cdkit.methods.presets import load

TEXT_ALONE = ("logits", "inputs")
"""What is recorded where a model's attention cannot be."""
DECIDED = (
    "do_sample",
    "max_new_tokens",
    "num_beams",
    "num_return_sequences",
    "return_dict_in_generate",
    "temperature",
)
"""Arguments of `generate` that follow from those of `explain`."""


def explain(
    model: nn.Module,
    inputs: Mapping[str, Any],
    methods: str | Method | Sequence[str | Method] | Mapping[str, str | Method] = "cmac",
    *,
    processor: Any = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    beams: int = 1,
    seed: int = 0,
    sample_id: str | None = None,
    options: Mapping[str, Any] | None = None,
    how: str | None = None,
    layers: Sequence[int] | None = None,
    top: int = 5,
) -> Explanation:
    """Answer one prompt without a method and with methods, and say what these did, token by token.

        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
        found = cdkit.explain(model, inputs, "cmac", processor=processor)
        found.save("page.html")

    In a notebook the result shows the page. Each method's answer is compared with the plain model
    given the same words before each token. This adds the time of two plain answers to that of
    the methods.

    Args:
        model: A Hugging Face model in eval mode.
        inputs: The arguments of `generate` for one prompt, as the processor returns them.
        methods: Names of presets, or methods; or what the page calls each method -> the method.
        processor: The model's processor: without it tokens are numbers, and methods that write
            text are refused.
        max_new_tokens: Token limit of an answer.
        temperature: Draw tokens at this temperature; None takes the most probable one.
        beams: Beams of a beam search; not with a temperature.
        seed: The seed of noise and of draws.
        sample_id: The name by which noise is drawn, as in `attach`.
        options: Further arguments of `generate`, such as a `logits_processor`.
        how: What the page says about how tokens were chosen; None follows from the arguments.
        layers: The decoder layers whose attention is drawn; None for as many as a page of 3 MB
            can hold, evenly spread.
        top: How many candidates of each column are shown.

    Returns:
        The explanation. A method that the model cannot run has the reason in its place.

    Raises:
        CdkitError: If there is not one prompt, a name or a layer is unknown, or every method is
            refused.
    """
    given, wanted = dict(inputs), _methods(methods)
    decoding = Decoding(
        max_new_tokens,
        temperature,
        beams,
        seed,
        None if sample_id is None else (sample_id,),
        options or {},
    )
    _check(given, top)
    ends = end_tokens(unwrap(model))
    plain = _run(model, _plain(), given, decoding, processor)
    shown = _checked_layers(layers, every := layers_of(plain.trace))
    answers = [_explained(PLAIN, plain, None, processor, top, decoding.notes)]
    traced = {PLAIN: plain.trace}
    refused = list[CdkitError]()
    for name, method in wanted.items():
        try:
            run = _run(model, method, given, decoding, processor)
            same = until_end(run.tokens, ends) == until_end(plain.tokens, ends)
            along = plain
            if not same:
                along = _along(model, _plain(), given, run.tokens, decoding, processor)
        except CdkitError as error:
            refused.append(error)
            # what is missing says what to do; that it cannot run yet is plain from the page
            answers.append(refused_answer(name, method, method.lacks or str(error)))
            continue
        if method.loop is not None:
            numbers = _explained(name, along, None, processor, top)
            answers.append(_along_a_loop(name, method, numbers))
            traced[name] = along.trace
            continue
        logits = [step.logits[ORIGINAL][0] for step in along.trace.steps]
        answers.append(_explained(name, run, logits, processor, top, decoding.notes))
        traced[name] = run.trace
    if refused and len(refused) == len(wanted):
        raise refused[0]
    first = plain.trace.inputs
    assert first is not None
    views, notes = picture_views(
        first, 0, processor, {n: t.inputs for n, t in traced.items() if t.inputs is not None}
    )
    return Explanation(
        model=model_name(unwrap(model)),
        prompt=prompt_text(first, 0, processor),
        how=how or decoding.words,
        answers=tuple(answers),
        layers=every,
        shown_layers=shown,
        views=views,
        notes=tuple(dict.fromkeys((*notes, *plain.notes))),
    )


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float | None
    beams: int
    seed: int
    sample_ids: tuple[str, ...] | None
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_whole("max_new_tokens", self.max_new_tokens)
        _check_whole("beams", self.beams)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise CdkitError(f"seed must be a whole number, got {self.seed!r}")
        if decided := [name for name in DECIDED if name in self.options]:
            raise CdkitError(
                f"options has {', '.join(decided)}, which explain decides: give it temperature, "
                "beams and max_new_tokens instead; it shows one answer"
            )
        if self.temperature is not None:
            check_temperature("temperature", self.temperature)
            if self.beams > 1:
                raise CdkitError("beams search and a temperature draws: give one of them")

    @property
    def words(self) -> str:
        found = "greedy decoding: the most probable token is taken"
        if self.temperature is not None:
            found = f"tokens drawn at temperature {self.temperature:g}, seed {self.seed}"
        elif self.beams > 1:
            found = f"beam search with {self.beams} beams"
        given = ", ".join(self.options)
        return f"{found}; generate was also given {given}" if given else found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the numbers."""
        if self.beams == 1:
            return ()
        return (
            "The answer is the best of a beam search. The numbers are computed along it, token by "
            "token; the search also kept answers whose first tokens were less probable.",
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `generate`."""
        drawn = self.temperature is not None
        found: dict[str, Any] = {"do_sample": drawn, "num_beams": self.beams}
        if drawn:
            found |= {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return found | dict(self.options)

    def attach(
        self, model: nn.Module, method: Method, processor: Any, trace: Sequence[str]
    ) -> Attachment:
        return attach(
            model,
            method,
            processor=processor,
            seed=self.seed,
            sample_ids=self.sample_ids,
            trace=trace,
        )


@dataclass(frozen=True, eq=False)
class TracedRun:
    """One answer, with the trace of the steps along it."""

    method: Method
    tokens: list[int]
    trace: Trace
    notes: tuple[str, ...] = ()


class KnownAnswer(LogitsProcessor):
    """Leaves one candidate a step: the next token of an answer that is known."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        only = torch.full_like(scores, -torch.inf)
        only[:, next(self._tokens)] = 0
        return only


def _methods(
    given: str | Method | Sequence[str | Method] | Mapping[str, str | Method],
) -> dict[str, Method]:
    """The methods beside the plain one, by what the page calls them."""
    each: list[Any] = [given]
    if isinstance(given, Mapping):
        each = list(given.values())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        each = list(given)
    methods = list[Method]()
    for one in each:
        if not isinstance(one, str | Method):
            raise CdkitError(f"methods are names of presets or cdkit.Method, got {one!r}")
        methods.append(load(one) if isinstance(one, str) else one)
    names = list(given) if isinstance(given, Mapping) else [method.name for method in methods]
    found: dict[str, Method] = {}
    for name, method in zip(names, methods, strict=True):
        if name == PLAIN:
            continue
        if name in found:
            raise CdkitError(
                f"two methods are called {name!r}: give each once, or name them in a mapping, such "
                f'as {{"weak": cdkit.load({name!r}, alpha=0.5), "strong": cdkit.load({name!r})}}'
            )
        found[name] = method
    return found


def _plain() -> Method:
    return load(PLAIN)


def _check(given: Mapping[str, Any], top: int) -> None:
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise CdkitError(
            "inputs must be what the processor returns for one prompt, with input_ids of shape "
            "(1, tokens)"
        )
    if len(ids) != 1:
        raise CdkitError(f"explain shows one answer, but inputs has {len(ids)} prompts: pass one")
    _check_whole("top", top)


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CdkitError(f"{name} must be a whole number of 1 or more, got {value!r}")


def _checked_layers(asked: Sequence[int] | None, there: Sequence[int]) -> tuple[int, ...] | None:
    if asked is None:
        return None
    if isinstance(asked, int | str):
        raise CdkitError(f"layers is a list of numbers, such as [0, 3], got {asked!r}")
    for layer in asked:
        if layer not in there:
            known = f"{there[0]} to {there[-1]}" if there else "none"
            if there and len(there) != there[-1] - there[0] + 1:
                known = ", ".join(map(str, there))
            raise CdkitError(
                f"layer {layer!r} is not there: the decoder's layers with attention are {known}"
            )
    if not asked:
        raise CdkitError("layers must name one layer at least; leave it out for a choice")
    return tuple(sorted(set(asked)))


def _run(
    model: nn.Module, method: Method, given: Mapping[str, Any], how: Decoding, processor: Any
) -> TracedRun:
    """A method's answer, traced."""
    if how.beams == 1 and method.loop is None:
        return _traced(model, method, given, how, processor, how.arguments)
    with how.attach(model, method, processor, ()):
        tokens = _generate(model, given, how, how.arguments)
    if method.loop is not None:
        return TracedRun(method, tokens, Trace(frozenset()))
    return _along(model, method, given, tokens, how, processor)


def _along(
    model: nn.Module,
    method: Method,
    given: Mapping[str, Any],
    tokens: Sequence[int],
    how: Decoding,
    processor: Any,
) -> TracedRun:
    """What a method gives along an answer that is known."""
    forced = {
        "do_sample": False,
        "num_beams": 1,
        "logits_processor": LogitsProcessorList([KnownAnswer(tokens)]),
        "max_new_tokens": len(tokens),
    }
    return _traced(model, method, given, how, processor, forced)


def _traced(
    model: nn.Module,
    method: Method,
    given: Mapping[str, Any],
    how: Decoding,
    processor: Any,
    arguments: Mapping[str, Any],
) -> TracedRun:
    """A traced answer; without attention where the model's cannot be traced."""
    notes = tuple[str, ...]()
    try:
        attached = how.attach(model, method, processor, WHAT)
    except CdkitError as error:
        attached = how.attach(model, method, processor, TEXT_ALONE)
        notes = (f"No attention is shown: {str(error).rstrip('.')}.",)
    with attached as run:
        tokens = _generate(model, given, how, arguments)
        return TracedRun(method, tokens, run.trace, notes)


@torch.inference_mode()
def _generate(
    model: Any, given: Mapping[str, Any], how: Decoding, arguments: Mapping[str, Any]
) -> list[int]:
    """The new tokens."""
    asked = {
        "max_new_tokens": how.max_new_tokens,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "use_cache": True,
        **arguments,
    }
    with torch.random.fork_rng():
        torch.manual_seed(how.seed % 2**63)  # torch takes no larger one
        ids = model.generate(**given, **asked)
    new: list[int] = ids[0, given["input_ids"].shape[1] :].tolist()
    return new


def _explained(
    name: str,
    run: TracedRun,
    plain: Sequence[Float[Tensor, " vocab"]] | None,
    processor: Any,
    top: int,
    notes: Sequence[str] = (),
) -> ExplainedAnswer:
    return explained_answer(
        name,
        run.method,
        run.trace,
        run.tokens,
        row=0,
        sample=0,
        processor=processor,
        plain=plain,
        top=top,
        text=decoded(run.tokens, processor),
        notes=(*run.notes, *notes),
    )


def _along_a_loop(name: str, method: Method, plain: ExplainedAnswer) -> ExplainedAnswer:
    """The plain model's numbers along the answer of a method with a loop of its own."""
    words = (
        f"{name} decides over several unfinished answers at once and may take tokens back, so no "
        "step has numbers of its own. The numbers here are those of the plain model along its "
        "answer."
    )
    return replace(plain, summary=method.summary, parts=described_parts(method), notes=(words,))


def refused_answer(name: str, method: Method, why: str) -> ExplainedAnswer:
    """What a page says of a method that could not answer.

    Args:
        name: What the page calls the method.
        method: The method.
        why: The reason, and what to do.
    """
    return ExplainedAnswer(
        name, method.summary, "", (), (), (), {}, (), described_parts(method), (), (), refused=why
    )

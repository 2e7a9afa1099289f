"""`cdkit generate`: one prompt, several methods, side by side."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.markup import escape
from rich.table import Table

import cdkit
from cdkit.errors import CdkitError, check_temperature, check_text
from cdkit.evals.protocols.follow import prepare
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.reports.results import MODES, mode_names
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated
from cdkit.evals.runner.checkpoint_settings import notes
from cdkit.evals.runner.chosen_model import AUTO, ChosenModel
from cdkit.evals.runner.modes import BEAM, GREEDY, SAMPLE
from cdkit.evals.runner.pictures import load_picture
from cdkit.evals.runner.shared_passes import Variant
from cdkit.explanation.explain import refused_answer
from cdkit.explanation.explained import PLAIN
from cdkit.explanation.explanation import Explanation
from cdkit.methods.method import Method
from cdkit.processors import check_positions
from cdkit.registry import in_any_case

NARROWEST = 24
"""Characters that a method's column needs; below that, each method gets a line instead."""
ASKED_BY = {GREEDY: "neither --sample nor --beams", SAMPLE: "--sample", BEAM: "--beams 5"}


def overrides(given: Sequence[str]) -> dict[str, Any]:
    """`["alpha=1.0", "scope=row"]` as parameters; a value is read as TOML, else as text."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise CdkitError(f"--set takes NAME=VALUE, such as alpha=1.0, got {item!r}")
        if name in found:
            raise CdkitError(f"--set gives {name!r} twice")
        try:
            read = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            read = {"value": value} if value.isprintable() else {}
        if read.keys() != {"value"} or not name.isprintable():
            raise CdkitError(
                f"--set takes one NAME=VALUE, such as alpha=1.0, got {item!r}: repeat --set for "
                "more, and write a value in one line"
            )
        found[name] = read["value"]
    return found


def methods(
    name: str | None,
    parameters: Mapping[str, Any],
    more: Sequence[str],
    protocol: Protocol | None = None,
) -> dict[str, Method]:
    """The methods to compare by what the table calls them: --method first, with its parameters.

    A file's method has the name that stands in it. A protocol's parameters hold where `parameters`
    names no other value.

    Raises:
        CdkitError: Where a method is given twice.
    """

    def load(method: str, **given: Any) -> Method:
        under = {} if protocol is None else protocol.parameters(method)
        return cdkit.load(method, **{**under, **given})

    known = cdkit.presets()
    found: dict[str, Method] = {}
    given = [] if name is None else [(name, parameters)]
    for one, values in (*given, *((other, {}) for other in more)):
        source = in_any_case(one, known) or one
        method = load(source, **values)
        shown = method.name if source.endswith(".toml") else source
        words = ", ".join((shown, *(f"{key} {value}" for key, value in values.items())))
        if words in found:
            raise CdkitError(f"{words} is given twice: give each method once")
        found[words] = method
    if len(found) == 1:  # of several, an answer says what one lacks
        next(iter(found.values())).check_complete()
    return found


def answer(
    chosen: ChosenModel,
    methods: Mapping[str, Method],
    prompt: str,
    images: Sequence[Path],
    *,
    max_new_tokens: int,
    temperature: float | None,
    beams: int,
    seed: int,
    device: str = AUTO,
    protocol: Protocol | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Generated | CdkitError]:
    """Each method's answer: sampled with a temperature, else greedy or the best of some beams.

    A method that is refused has its error in place of an answer; all refused is an error. Methods
    that sample share their random numbers. Of a protocol, as it is for this model, the prompt, the
    images and what a draw keeps hold; the rest is asked for by the other arguments. `tell` is given
    lines for the user, such as where the model is.
    """
    if temperature is not None:
        check_temperature("--temperature", temperature)
    check_text("--prompt", prompt)
    mode = BEAM if beams > 1 else GREEDY if temperature is None else SAMPLE
    found: dict[str, Generated | CdkitError] = {**_of_other_modes(methods, mode)}
    _check_some(found, methods)
    pictures = [load_picture(path) for path in images]  # before the seconds that a model takes
    model, processor = chosen.load(device)
    engine = AnswerEngine(model, processor, temperature or 1.0, noise_seed=seed, num_beams=beams)
    if protocol is not None:
        engine = replace(engine, top_k=protocol.top_k, top_p=protocol.top_p, protocol=protocol)
        adapter = cdkit.adapter_for(model)
        for line in prepare(protocol, adapter=adapter, processor=processor):
            tell(line)
    inputs = engine.encode([pictures], [prompt])
    check_positions(inputs["input_ids"].shape[1], model.config)
    for line in (chosen.told(model), *notes(model, beams=mode == BEAM)):
        tell(line)
    sample_id = f"{', '.join(path.name for path in images)}: {prompt}"
    drawn = None if temperature is None else seed
    for name, method in methods.items():
        if name in found:
            continue
        try:
            (found[name],) = engine.answers(
                method, inputs, [sample_id], limit=max_new_tokens, seed=drawn, beams=mode == BEAM
            )
        except CdkitError as error:
            found[name] = error
    _check_some(found, methods)
    return {name: found[name] for name in methods}


def explained(
    chosen: ChosenModel,
    methods: Mapping[str, Method],
    prompt: str,
    images: Sequence[Path],
    *,
    max_new_tokens: int,
    temperature: float | None,
    beams: int,
    seed: int,
    layers: Sequence[int] | None,
    device: str = AUTO,
    tell: Callable[[str], None] = lambda line: None,
) -> Explanation:
    """The same answers as `answer` gives, explained.

    Other arguments are those of `answer` and of `cdkit.explain`.
    """
    mode = BEAM if beams > 1 else GREEDY if temperature is None else SAMPLE
    _check_some(_refused(methods, mode), methods)
    pictures = [load_picture(path) for path in images]  # before the seconds that a model takes
    model, processor = chosen.load(device)
    return explained_by(
        chosen,
        AnswerEngine(model, processor, temperature or 1.0, noise_seed=seed, num_beams=beams),
        methods,
        prompt,
        pictures,
        sample_id=f"{', '.join(path.name for path in images)}: {prompt}",
        max_new_tokens=max_new_tokens,
        mode=mode,
        seed=seed if mode == SAMPLE else None,
        layers=layers,
        tell=tell,
    )


def explained_by(
    chosen: ChosenModel,
    engine: AnswerEngine,
    methods: Mapping[str, Method],
    prompt: str,
    pictures: Sequence[Image],
    *,
    sample_id: str,
    max_new_tokens: int,
    mode: str,
    seed: int | None,
    layers: Sequence[int] | None,
    tell: Callable[[str], None] = lambda line: None,
) -> Explanation:
    """The answers of an engine, explained.

    Args:
        chosen: The model as it was asked for.
        engine: The model, and how it decodes.
        methods: What the page calls each method -> the method.
        prompt: The question, without a chat template.
        pictures: Its images.
        sample_id: The name by which noise and draws are made.
        max_new_tokens: Most tokens of an answer.
        mode: The decode mode: greedy, sample or beam.
        seed: The seed of draws; None where nothing is drawn.
        layers: As in `cdkit.explain`.
        tell: Is given lines for the user once the prompt is known to fit.
    """
    refused = _refused(methods, mode)
    model = engine.model
    inputs = engine.encode([pictures], [prompt])
    length = inputs["input_ids"].shape[1]
    check_positions(length, model.config)
    for line in (chosen.told(model), *notes(model, beams=mode == BEAM)):
        tell(line)
    options: dict[str, Any] = {}
    words = None
    if seed is not None:  # the draws of `cdkit generate` and of runs
        options["logits_processor"] = engine.sampling(seed, [sample_id], length)
        kept = {"top_k": engine.top_k, "top_p": engine.top_p}
        more = "".join(f", {name} {value:g}" for name, value in kept.items() if value is not None)
        words = f"tokens drawn at temperature {engine.temperature:g}{more}, seed {seed}"
    found = cdkit.explain(
        model,
        inputs,
        {name: method for name, method in methods.items() if name not in refused},
        processor=engine.processor,
        max_new_tokens=max_new_tokens,
        beams=engine.num_beams if mode == BEAM else 1,
        seed=engine.noise_seed,
        sample_id=sample_id,
        options=options,
        how=words,
        layers=layers,
    )
    answers = {answer.name: answer for answer in found.answers} | {
        name: refused_answer(name, methods[name], str(error)) for name, error in refused.items()
    }
    order = [PLAIN, *(name for name in methods if name != PLAIN)]
    return replace(found, answers=tuple(answers[name] for name in order))


def _refused(methods: Mapping[str, Method], mode: str) -> dict[str, CdkitError]:
    """The methods that cannot run, and why."""
    lacking = {name: CdkitError(each.lacks) for name, each in methods.items() if each.lacks}
    return _of_other_modes(methods, mode) | lacking


def _of_other_modes(methods: Mapping[str, Method], mode: str) -> dict[str, CdkitError]:
    """The methods that are not defined for the mode, and why."""
    refused = dict[str, CdkitError]()
    for name, method in methods.items():
        try:
            check_mode(Variant(name, method), mode)
        except CdkitError as error:
            refused[name] = error
    return refused


def _check_some(found: Mapping[str, Generated | CdkitError], methods: Mapping[str, Method]) -> None:
    """Raise the first refusal where no method is left."""
    refused = [each for each in found.values() if isinstance(each, CdkitError)]
    if len(refused) == len(methods):
        raise refused[0]


def check_mode(variant: Variant, mode: str) -> None:
    """Raise where the method is not defined for the mode, naming the options it needs."""
    if mode not in variant.modes:
        ways = (f"{MODES[m]}, for which give {ASKED_BY[m]}" for m in variant.modes)
        words = "; or ".join(ways) or f"{mode_names(variant.method.modes)}, which needs Python"
        raise CdkitError(f"{variant.name} is not defined for {mode_names([mode])}, but for {words}")


def side_by_side(answers: Mapping[str, Generated | CdkitError], width: int) -> Table:
    """A column a method where the terminal is wide enough, else a line a method."""
    texts = {escape(name): _text(answer) for name, answer in answers.items()}
    if len(answers) * (NARROWEST + 3) <= width:
        table = Table(*texts, show_lines=False)
        table.add_row(*texts.values())
        return table
    table = Table("method", "answer", show_lines=True)
    for name, text in texts.items():
        table.add_row(name, text)
    return table


def _text(answer: Generated | CdkitError) -> str:
    if isinstance(answer, CdkitError):
        return f"[red]refused: {escape(str(answer))}[/red]"
    return escape(answer.text) + (" [dim](cut off)[/dim]" if answer.truncated else "")

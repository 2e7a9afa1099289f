"""The gallery of one benchmark: answers that differ, their images, and the methods' attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cdkit.evals.reports import gallery
from cdkit.evals.reports.gallery import Answers
from cdkit.evals.reports.results import AttentionOverlay, Gallery
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.runner.questions import Question
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally

OverlaySource = Callable[[Sequence[Question]], Mapping[Question, AttentionOverlay] | str]
"""Questions -> the attention over each question's image, or a text that says why there is none.

`attention_overlays.collect_overlays` makes one."""
CommandSource = Callable[[Sample, Sequence[str]], tuple[str, ...]]
"""A sample and methods -> the commands that explain their answers to it."""


def example_gallery(
    name: str,
    benchmark: Benchmark,
    questions: Mapping[str, Question],
    answers: Answers,
    *,
    count: int,
    seed: int = 0,
    base: str = PLAIN,
    tallies: Mapping[str, Tally] | None = None,
    overlays: OverlaySource | None = None,
    commands: CommandSource | None = None,
) -> Gallery:
    """Choose questions that methods answer differently, by lot.

    Args:
        name: The title of the gallery.
        benchmark: The benchmark.
        questions: Sample id -> the question that was asked.
        answers: Method -> sample id -> answer.
        count: Most questions to choose.
        seed: The seed of the lot.
        base: The method that others are compared with.
        tallies: Method -> tally of its answers, if they are known already or leave samples out.
        overlays: Gives the attention over the images; without it none is drawn.
        commands: Gives the commands that explain an answer; without it none is shown.

    Returns:
        The chosen questions with their answers.

    Raises:
        CdkitError: An image cannot be read.
    """
    if tallies is None:
        tallies = {method: benchmark.tally(by_id) for method, by_id in answers.items()}
    drawn = gallery.draw(tallies, answers, count=count, base=base, seed=seed)
    asked = [questions[sample.id] for sample, _ in drawn.samples]
    seen = overlays(asked) if overlays is not None and asked else {}
    examples = []
    for sample, kind in drawn.samples:
        question = questions[sample.id]
        shared = gallery.shared_answers(
            sample, tallies, answers, _notes(benchmark, sample.id, answers)
        )
        example = gallery.make_example(
            sample,
            kind,
            question.picture(),
            shared,
            None if isinstance(seen, str) else seen.get(question),
        )
        telling = gallery.one_of_each(shared, base)
        if commands is not None and telling:
            example = replace(example, commands=commands(sample, telling))
        examples.append(example)
    return Gallery(
        name,
        drawn.rule(base, seed),
        tuple(examples),
        notes=(seen,) if isinstance(seen, str) else (),
    )


def _notes(benchmark: Benchmark, sample_id: str, answers: Answers) -> dict[str, str]:
    """Answer -> what stands beside it."""
    texts = {by_id[sample_id].text for by_id in answers.values()}
    found = {text: benchmark.notes(sample_id, text) for text in texts}
    return {text: words for text, words in found.items() if words}

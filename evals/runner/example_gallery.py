"""The gallery of one benchmark from its answers, with pictures and what methods looked at."""

from collections.abc import Callable, Mapping, Sequence

from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.reports import gallery
from cdkit.evals.reports.gallery import Answers
from cdkit.evals.reports.results import AttentionOverlay, Gallery
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.runner.pictures import load_picture
from cdkit.evals.runner.questions import Question
from cdkit.interfaces.benchmark import Benchmark, Tally

OverlaySource = Callable[[Sequence[Question]], Mapping[Question, AttentionOverlay] | str]
"""What was looked at for each question, or why nobody can tell: `attention.collect`, say."""


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
) -> Gallery:
    """Up to `count` questions that the methods of `answers` answer differently.

    `questions`: sample id -> the question that was asked. `tallies` are those of the answers where
    they are known already, or leave samples out. Without `overlays` no attention is drawn.
    """
    if tallies is None:
        tallies = {method: benchmark.tally(said) for method, said in answers.items()}
    drawn = gallery.draw(tallies, answers, count=count, base=base, seed=seed)
    asked = [questions[sample.id] for sample, _ in drawn.samples]
    seen = overlays(asked) if overlays is not None and asked else {}
    return Gallery(
        name,
        drawn.rule(base, seed),
        tuple(
            gallery.make_example(
                sample,
                kind,
                load_picture(questions[sample.id].image),
                gallery.shared_answers(
                    sample, tallies, answers, _notes(benchmark, sample.id, answers)
                ),
                None if isinstance(seen, str) else seen.get(questions[sample.id]),
            )
            for sample, kind in drawn.samples
        ),
        notes=(seen,) if isinstance(seen, str) else (),
    )


def _notes(benchmark: Benchmark, sample_id: str, answers: Answers) -> dict[str, str]:
    """Answer -> what stands beside it: of a caption, its objects that are not in the image."""
    if not isinstance(benchmark, CHAIR):
        return {}
    found = {}
    for text in {said[sample_id].text for said in answers.values()}:
        if wrong := benchmark.wrong_objects(sample_id, text):
            found[text] = f"not in the image: {', '.join(dict.fromkeys(wrong))}"
    return found

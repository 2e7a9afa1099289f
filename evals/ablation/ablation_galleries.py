"""The galleries of an ablation: what its greedy answers differ in."""

from collections.abc import Mapping, Sequence

from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.grid_runner import Answers, Decode
from cdkit.evals.ablation.plan import Variant
from cdkit.evals.reports.results import AttentionOverlay, Gallery
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.attention_overlays import changes_attention, collect_overlays
from cdkit.evals.runner.example_gallery import example_gallery
from cdkit.evals.runner.modes import GREEDY, PLAIN
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.questions import Question

GALLERY = "gallery"


def galleries(
    grid: Grid,
    variants: Sequence[Variant],
    loaded: Sequence[LoadedBenchmark],
    engine: AnswerEngine,
    answers: Answers,
    stages: Stages,
) -> tuple[Gallery, ...]:
    """One for each benchmark that is answered greedily; none where the grid asks for no sample."""
    spec = grid.gallery
    shown = [item for item in loaded if spec.samples and GREEDY in grid.modes_of(item.name)]
    greedy = [variant for variant in variants if GREEDY in variant.modes]
    drawn = {
        variant.name: variant.method
        for variant in greedy
        if (variant.name in spec.methods if spec.methods else _is_drawn(variant))
    }

    def overlays(asked: Sequence[Question]) -> Mapping[Question, AttentionOverlay] | str:
        return collect_overlays(engine, drawn, asked)

    stages.start(GALLERY, len(shown))
    found = []
    for item in shown:
        by_method = {
            variant.name: {
                sample: answers[question, variant.name, Decode()]
                for sample, question in item.questions.items()
            }
            for variant in greedy
        }
        found.append(
            example_gallery(
                item.name,
                item.benchmark,
                item.questions,
                by_method,
                count=spec.samples,
                seed=spec.seed,
                overlays=overlays,
            )
        )
        stages.advance(GALLERY)
    return tuple(found)


def _is_drawn(variant: Variant) -> bool:
    return variant.name == PLAIN or changes_attention(variant.method)

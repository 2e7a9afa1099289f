"""The galleries of an ablation: what its greedy answers differ in."""

from collections.abc import Mapping, Sequence

from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import Loaded
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
    arms: Sequence[Variant],
    loaded: Sequence[Loaded],
    engine: AnswerEngine,
    answers: Answers,
    stages: Stages,
) -> tuple[Gallery, ...]:
    """One for each benchmark that is answered greedily; none where the grid asks for no sample."""
    spec = grid.gallery
    shown = [item for item in loaded if spec.samples and GREEDY in grid.modes_of(item.name)]
    greedy = [arm for arm in arms if GREEDY in arm.modes]
    drawn = {
        arm.name: arm.method
        for arm in greedy
        if (arm.name in spec.methods if spec.methods else _is_drawn(arm))
    }

    def looks(asked: Sequence[Question]) -> Mapping[Question, AttentionOverlay] | str:
        return collect_overlays(engine, drawn, asked)

    stages.start(GALLERY, len(shown))
    found = []
    for item in shown:
        said = {
            arm.name: {
                sample: answers[question, arm.name, Decode()]
                for sample, question in item.questions.items()
            }
            for arm in greedy
        }
        found.append(
            example_gallery(
                item.name,
                item.benchmark,
                item.questions,
                said,
                count=spec.samples,
                seed=spec.seed,
                looks=looks,
            )
        )
        stages.advance(GALLERY)
    return tuple(found)


def _is_drawn(arm: Variant) -> bool:
    return arm.name == PLAIN or changes_attention(arm.method)

"""The galleries of an ablation: what its greedy answers differ in."""

from collections.abc import Mapping, Sequence

from cdkit.evals.ablation.benchmarks import Loaded
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.plan import Arm
from cdkit.evals.ablation.run import Answers, Decode
from cdkit.evals.modes import GREEDY, PLAIN
from cdkit.evals.reporting.results import Gallery, Look
from cdkit.evals.runs.attention import collect, looks_at_attention
from cdkit.evals.runs.engine import Engine
from cdkit.evals.runs.exhibits import hang
from cdkit.evals.runs.progress import Stages
from cdkit.evals.runs.questions import Question

GALLERY = "gallery"


def galleries(
    grid: Grid,
    arms: Sequence[Arm],
    loaded: Sequence[Loaded],
    engine: Engine,
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

    def looks(asked: Sequence[Question]) -> Mapping[Question, Look] | str:
        return collect(engine, drawn, asked)

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
            hang(
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


def _is_drawn(arm: Arm) -> bool:
    return arm.name == PLAIN or looks_at_attention(arm.method)

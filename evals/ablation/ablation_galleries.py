"""The galleries of a run: what its greedy answers differ in."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.reports.results import AttentionOverlay, Gallery
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.attention_overlays import changes_attention, collect_overlays
from cdkit.evals.runner.example_gallery import example_gallery
from cdkit.evals.runner.explain_command import explain_command
from cdkit.evals.runner.modes import GREEDY, Decode
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import Variant
from cdkit.interfaces.sample import Sample

GALLERY = "gallery"


def galleries(
    run: PreparedRun,
    answered: Answered,
    engine: Callable[[], AnswerEngine],
    stages: Stages,
) -> tuple[Gallery, ...]:
    """One for each benchmark that several methods answer greedily; none where none is asked for.

    Args:
        run: What was asked.
        answered: The answers.
        engine: Gives the model, where attention is drawn over a picture.
        stages: Shows progress.

    Returns:
        The galleries.
    """
    spec, base = run.grid.gallery, run.grid.base
    greedy = [variant for variant in answered.can_run(run.variants) if GREEDY in variant.modes]
    several = len(greedy) > 1 and any(variant.name == base for variant in greedy)
    shown = [item for item in run.loaded if spec.samples and several and GREEDY in item.modes]
    drawn = {
        variant.name: variant.method
        for variant in greedy
        if (variant.name in spec.methods if spec.methods else _is_drawn(variant, base))
    }

    def overlays(asked: Sequence[Question]) -> Mapping[Question, AttentionOverlay] | str:
        return collect_overlays(engine(), drawn, asked)

    stages.start(GALLERY, len(shown))
    found = []
    for item in shown:
        failed = answered.errors(item, [variant.name for variant in greedy], [Decode()])
        questions = {name: q for name, q in item.questions.items() if name not in failed}
        if questions:
            by_method = {v.name: answered.answers(item, v.name, Decode()) for v in greedy}
            found.append(
                example_gallery(
                    item.name,
                    item.benchmark,
                    questions,
                    by_method,
                    count=spec.samples,
                    seed=spec.seed,
                    base=base,
                    tallies={
                        v.name: answered.tally(item, v.name, Decode(), failed) for v in greedy
                    },
                    overlays=overlays,
                    commands=partial(_commands, run, answered, item.name),
                )
            )
        stages.advance(GALLERY)
    return tuple(found)


def _commands(
    run: PreparedRun, answered: Answered, part: str, sample: Sample, methods: Sequence[str]
) -> tuple[str, ...]:
    model = answered.model if answered.several else None
    return (explain_command(run.folder, part, sample.id, methods, model=model),)


def _is_drawn(variant: Variant, base: str) -> bool:
    return variant.name == base or changes_attention(variant.method)

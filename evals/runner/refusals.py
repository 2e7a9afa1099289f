"""Which methods of a run the model cannot run: found on one question, before the first answer."""

from collections.abc import Sequence

from cdkit.errors import CdkitError, PromptError
from cdkit.evals.runner.answering import Answering
from cdkit.evals.runner.batches import Group
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.workload import Workload

TRIED = 8
"""Questions that are looked at for one that can be asked at all."""


def refusals(answering: Answering, workload: Workload) -> dict[str, str]:
    """Try each method on one question.

    Args:
        answering: The model with the methods.
        workload: What they are asked.

    Returns:
        Hash of each method that the model refuses -> why. Nothing where no question can be asked:
        their own errors say why then.
    """
    example = _example(answering, list(workload.demand)[:TRIED])
    if example is None:
        return {}
    decodes: dict[str, Decode] = {}
    for asked in workload.demand.values():
        for name, some in asked.items():
            decodes.setdefault(name, min(some, key=str))
    found: dict[str, str] = {}
    inputs = answering.engine.inputs([example])
    for name, decode in decodes.items():
        group = Group(((name, decode),), shared=False)
        short = Question(example.image, example.prompt, 1, example.yes_no, example.folder)
        try:
            (answer,) = answering.answers(group, [short], inputs).values()
        except ValueError as error:  # what transformers refuses, also of the model with no method
            found[name] = " ".join(str(error).split())
            continue
        if isinstance(answer, CdkitError) and not isinstance(answer, PromptError):
            found[name] = str(answer)
    return found


def _example(answering: Answering, questions: Sequence[Question]) -> Question | None:
    """The first question that the processor takes."""
    for question in questions:
        try:
            answering.engine.inputs([question])
        except (CdkitError, ValueError):
            continue
        return question
    return None

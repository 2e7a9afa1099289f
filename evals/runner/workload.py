"""What a model is asked: each distinct question once, by which methods and under which decodes.

Benchmarks that share a question ask it once, and methods that are equal answer it once, whatever
tables call them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cdkit.evals.runner.fingerprints import short_hash
from cdkit.evals.runner.journal import Key
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import Variant
from cdkit.methods.method import Method

Asked = Mapping[str, frozenset[Decode]]
"""Method's hash -> the decodes that a question is asked under."""


@dataclass(frozen=True, eq=False)
class Workload:
    """Questions, methods and decodes of a run.

    Args:
        methods: Hash -> method.
        demand: Question -> what it is asked by; in the order of the benchmarks.
        first_token: Whether a first token that reads yes or no decides a yes/no question.
        root: The run's folder: images inside it count by their path in it.
    """

    methods: Mapping[str, Method]
    demand: Mapping[Question, Asked]
    first_token: bool
    root: Path

    @cached_property
    def keys(self) -> Mapping[Question, str]:
        """Question -> its name in the journal."""
        return {question: question_key(question, self.root) for question in self.demand}

    @cached_property
    def variants(self) -> Mapping[str, Variant]:
        """The methods under their hashes."""
        return {name: Variant(name, method) for name, method in self.methods.items()}

    def rows(self, model: str) -> Iterable[Key]:
        """The key of every answer that one model is to give."""
        for question, asked in self.demand.items():
            for method, decodes in asked.items():
                for decode in decodes:
                    yield (model, self.keys[question], method, decode.mode, decode.seed)


def question_key(question: Question, root: Path) -> str:
    """What names a question in a journal.

    Args:
        question: The question.
        root: The run's folder, which may be moved: an image inside it counts by its path in it.

    Returns:
        A hash of the image's path, the prompt and the token limit.
    """
    image, inside = question.image.absolute(), root.absolute()
    path = image.relative_to(inside) if image.is_relative_to(inside) else image
    return short_hash([path.as_posix(), question.prompt, question.limit, question.yes_no])

"""What one model answered to all benchmarks of a run, under every method and decode."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import Variant
from cdkit.evals.runner.workload import Asked
from cdkit.interfaces.sample import Answer
from cdkit.interfaces.tally import Tally


@dataclass(frozen=True, eq=False)
class Answered:
    """The rows of one model, by what tables call them.

    Args:
        model: The model's name.
        rows: The journal's rows.
        keys: Question -> its name in the journal.
        hashes: Variant's name -> its method's hash.
        refused: Name of each variant that the model cannot run -> why.
        unmatched: What of the protocol cannot be matched on the model.
        several: Whether it is one of several models.
    """

    model: str
    rows: Mapping[Key, JournalRow]
    keys: Mapping[Question, str]
    hashes: Mapping[str, str]
    refused: Mapping[str, str]
    unmatched: tuple[str, ...] = ()
    several: bool = False

    def row(self, question: Question, variant: str, decode: Decode) -> JournalRow:
        return self.by_hash(question, self.hashes[variant], decode)

    def by_hash(self, question: Question, method: str, decode: Decode) -> JournalRow:
        """The row of a method under its hash."""
        key = (self.model, self.keys[question], method, decode.mode, decode.seed)
        if key not in self.rows:
            raise CdkitError(
                "some answers are not there yet: go on with --resume, which makes them"
            )
        return self.rows[key]

    def shown(self, method: str) -> str:
        """What tables call the method of a hash: the first name that it has."""
        return next(name for name, known in self.hashes.items() if known == method)

    def failed(self, question: Question, asked: Asked) -> bool:
        """Whether a question has no answer under one method or decode."""
        refused = {self.hashes[name] for name in self.refused}
        return any(
            self.by_hash(question, method, decode).error is not None
            for method, decodes in asked.items()
            if method not in refused
            for decode in decodes
        )

    def of(self, item: LoadedBenchmark, variant: str, decode: Decode) -> dict[str, JournalRow]:
        """Sample id -> row, in the samples' order."""
        return {name: self.row(q, variant, decode) for name, q in item.questions.items()}

    def answers(self, item: LoadedBenchmark, variant: str, decode: Decode) -> dict[str, Answer]:
        """Sample id -> answer, of those that have one."""
        rows = self.of(item, variant, decode)
        return {name: row.answer for name, row in rows.items() if row.error is None}

    def errors(
        self, item: LoadedBenchmark, variants: Sequence[str], decodes: Sequence[Decode]
    ) -> dict[str, str]:
        """Sample id -> why it has no answer, under one of the variants and decodes or more."""
        return {
            name: row.error
            for variant in variants
            for decode in decodes
            for name, row in self.of(item, variant, decode).items()
            if row.error is not None
        }

    def tally(
        self, item: LoadedBenchmark, variant: str, decode: Decode, without: Mapping[str, str]
    ) -> Tally:
        """The tally of what was answered, but for what is not asked and what is left out."""
        out = item.unasked | without.keys()
        return item.benchmark.tally(self.answers(item, variant, decode), without=out)

    def can_run(self, variants: Sequence[Variant]) -> Iterator[Variant]:
        """The variants that the model does not refuse."""
        return (variant for variant in variants if variant.name not in self.refused)

"""The answers of compared runs as tallies of the same samples."""

from collections.abc import Iterator, Mapping, Sequence

from cdkit.errors import CdkitError
from cdkit.evals.comparison.run_names import NamedRuns
from cdkit.evals.runner.finished import FinishedPart
from cdkit.interfaces.tally import Tally

Seed = int | None


def tallies(
    runs: NamedRuns, part: str, *, allow_missing: bool = False
) -> tuple[Mapping[str, Sequence[Tally]], tuple[str, ...]]:
    """Name -> one tally a seed, in the seeds' order, and notes on samples that were left out.

    The samples are those that all runs were asked (`--limit`). One of them without an answer in any
    run or seed is a CdkitError; with `allow_missing` it is left out of all runs, so that every
    number is over the same samples.
    """
    lacking = {name: unanswered(run.parts[part]) for name, run in runs.items()}
    unasked = frozenset[str]().union(*(run.parts[part].unasked for run in runs.values()))
    lacking = {
        name: {sample: why for sample, why in samples.items() if sample not in unasked}
        for name, samples in lacking.items()
    }
    first = next(iter(runs.values())).parts[part].benchmark
    if all(sample.id in unasked for sample in first.samples()):
        raise CdkitError(f"no question of {part} was asked in all runs: give them one --limit")
    lacking = {name: samples for name, samples in lacking.items() if samples}
    if lacking and not allow_missing:
        name, samples = next(iter(lacking.items()))
        raise CdkitError(
            f"{name} has no answer to {_counted(samples)} of {part} ({_few(samples)}): answer "
            "them (cdkit eval --resume --retry-errors), or add --allow-missing to leave them out "
            "of every run"
        )
    without = unasked.union(*lacking.values())
    found = {
        name: [
            run.parts[part].benchmark.tally(run.parts[part].answers[seed], without=without)
            for seed in seeds(run.parts[part])
        ]
        for name, run in runs.items()
    }
    return found, tuple(_notes(runs, part, found, lacking, unasked))


def unanswered(part: FinishedPart) -> dict[str, str]:
    """Sample id -> why, of those that lack an answer in any seed."""
    if not part.answers:
        raise CdkitError(f"{part.name} has no answers at all: finish the run first")
    return {
        sample.id: part.errors.get(sample.id, "no answer")
        for sample in part.benchmark.samples()
        if sample.id in part.errors
        or any(sample.id not in by_id for by_id in part.answers.values())
    }


def seeds(part: FinishedPart) -> list[Seed]:
    """In order: the runs of a comparison are paired seed by seed."""
    return sorted(part.answers, key=lambda seed: -1 if seed is None else seed)


def _notes(
    runs: NamedRuns,
    part: str,
    found: Mapping[str, Sequence[Tally]],
    lacking: Mapping[str, Mapping[str, str]],
    unasked: frozenset[str],
) -> Iterator[str]:
    """What was left out of a part, and why."""
    name = next(iter(runs))
    total, kept = len(runs[name].parts[part].benchmark.samples()), len(found[name][0].samples)
    asked = total - len(unasked)
    if unasked:
        of_runs = {n: total - len(run.parts[part].unasked) for n, run in runs.items()}
        each = "" if len({*of_runs.values()}) == 1 else f" ({_numbers(of_runs)} were asked)"
        yield f"{part}: over the {asked} of {total} samples that every run was asked{each}"
    if lacking:
        alone = len({sample for samples in lacking.values() for sample in samples})
        why = "; ".join(f"{name}: {_few(samples)}" for name, samples in lacking.items())
        joint = f", {asked - kept - alone} of them scored with one that has none"
        yield (
            f"{part}: over {kept} of {asked} samples; {asked - kept} without an answer are left "
            f"out of every run{joint if asked - kept > alone else ''} ({why})"
        )


def _numbers(of_runs: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in of_runs.items())


def _counted(samples: Mapping[str, str]) -> str:
    return f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"


def _few(samples: Mapping[str, str], most: int = 3) -> str:
    listed = [f"{sample}: {reason}" for sample, reason in list(samples.items())[:most]]
    return "; ".join(listed) + ("; ..." if len(samples) > most else "")

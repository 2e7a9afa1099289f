"""Metrics of each model, method and decode mode on each part, by themselves: no base, no test."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.demand import asked_of
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.grid_results import OfModel
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.runner.modes import Decode


def scores(run: PreparedRun, answered: Answered) -> Iterator[dict[str, Any]]:
    """Each seed's metrics and their mean, and over how many samples they are.

    Samples that were not asked, or failed under any seed, are left out under every seed.
    """
    for variant in answered.can_run(run.variants):
        for item in run.loaded:
            for mode in item.modes:
                decodes = [d for d in item.decodes if d.mode == mode]
                if mode not in variant.modes:
                    continue
                yield {
                    "model": answered.model,
                    "method": variant.name,
                    "mode": mode,
                    "part": item.name,
                    **_scored(item, answered, variant.name, decodes),
                }


def errors(answered: Sequence[OfModel]) -> dict[str, dict[str, str]]:
    """Part -> sample id -> why it lacks an answer, of any model and method."""
    found: dict[str, dict[str, str]] = {}
    for each in answered:
        run, model = each.run, each.answered
        for item in run.loaded:
            for variant, decodes in asked_of(run, item).items():
                if variant not in model.refused:
                    lost = model.errors(item, [variant], sorted(decodes, key=str))
                    if lost:
                        found.setdefault(item.name, {}).update(lost)
    return found


def _scored(
    item: LoadedBenchmark, answered: Answered, variant: str, decodes: Sequence[Decode]
) -> Mapping[str, Any]:
    samples = item.benchmark.samples()
    failed = answered.errors(item, [variant], decodes)
    record: dict[str, Any] = {
        "samples": len(samples),
        "asked": len(item.questions),
        "failed": len(failed),
    }
    if not item.questions.keys() - failed.keys():
        return record | {"scored": 0, "by_seed": [], "mean": {}, "warnings": []}
    tallies = {d.seed: answered.tally(item, variant, d, failed) for d in decodes}
    values = {seed: tally.values() for seed, tally in tallies.items()}
    found = {d.seed: answered.answers(item, variant, d) for d in decodes}
    warnings = {seed: doubts(tally, found[seed]) for seed, tally in tallies.items()}
    first = next(iter(values.values()))
    return record | {
        "scored": len(next(iter(tallies.values())).samples),
        "by_seed": [{"seed": seed, "metrics": metrics} for seed, metrics in values.items()],
        "mean": {n: sum(v[n] for v in values.values()) / len(values) for n in first},
        "warnings": [
            text if seed is None else f"seed {seed}: {text}"
            for seed, texts in warnings.items()
            for text in texts
        ],
    }

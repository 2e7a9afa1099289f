"""What each distinct question of a run is asked by."""

from collections.abc import Mapping

from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.workload import Asked, Workload


def workload(run: PreparedRun) -> Workload:
    """Benchmarks that share a question ask it once; methods that are equal answer it once."""
    found: dict[Question, dict[str, frozenset[Decode]]] = {}
    for item in run.loaded:
        asked = asked_of(run, item)
        for question in item.questions.values():
            known = found.setdefault(question, {})
            for name, decodes in asked.items():
                method = run.hashes[name]
                known[method] = known.get(method, frozenset()) | decodes
    methods = {run.hashes[v.name]: v.method for v in reversed(run.all_variants)}
    demand: Mapping[Question, Asked] = found
    return Workload(methods, demand, run.grid.first_token, run.folder)


def asked_of(run: PreparedRun, item: LoadedBenchmark) -> dict[str, frozenset[Decode]]:
    """Variant's name -> the decodes that the benchmark's tables and figures need of it.

    A variant is not asked in a mode that it is not defined for.
    """
    asked = {
        variant.name: frozenset(d for d in item.decodes if d.mode in variant.modes)
        for variant in run.variants
    }
    greedy = {Decode()}
    for point in run.points:
        if item.name in run.grid.sweeps[point.method].benchmarks:
            asked[point.variant.name] = frozenset(greedy)
            asked[run.grid.base] |= greedy  # the level that the curves are seen against
    for name in positions(run, item):
        asked[name] |= greedy
    return {name: wanted for name, wanted in asked.items() if wanted}


def positions(run: PreparedRun, item: LoadedBenchmark) -> tuple[str, ...]:
    """The methods whose misses on the benchmark are counted by place."""
    wanted = run.grid.position
    return wanted.methods if wanted is not None and wanted.benchmark == item.name else ()

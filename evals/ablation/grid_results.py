"""From the answers of a run to its tables, curves, examples and costs, model by model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cdkit.evals.ablation.ablation_galleries import galleries
from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.demand import positions
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.ablation.proof import Proof, prove
from cdkit.evals.ablation.published import beside
from cdkit.evals.ablation.sweep_figures import position_figure, sweep_figures
from cdkit.evals.protocols.follow import not_their_papers, unmatched
from cdkit.evals.reports import method_tables
from cdkit.evals.reports.results import Costs, Figure, Results, Table, TextTable
from cdkit.evals.runner.engines import Engines
from cdkit.evals.runner.modes import GREEDY, Decode
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.timing import measure
from cdkit.evals.runner.workload import Workload

TABLES, COST = "intervals and tests", "cost"


@dataclass(frozen=True, eq=False)
class OfModel:
    """What one model's answers gave."""

    run: PreparedRun
    answered: Answered
    results: Results
    unmatched: tuple[str, ...]
    """What of the protocol is not matched."""
    proof: Proof | None


def of_model(
    run: PreparedRun,
    asked: Workload,
    answered: Answered,
    engines: Engines,
    resources: Resources,
    stages: Stages,
) -> OfModel:
    """Tables and figures from the answers; what needs the model itself is done here, too.

    Args:
        run: What was asked.
        asked: The same, by distinct questions.
        answered: The answers.
        engines: The model; it is loaded only where something needs it.
        resources: Where it is loaded.
        stages: Shows progress.

    Returns:
        The results.

    Raises:
        MismatchError: Answers that the first token decided are not those of `generate`.
    """
    grid = run.grid
    proof = None
    if grid.check and grid.first_token and _decided(run):
        engine = engines.anywhere(resources.device)
        proof = prove(engine, asked, answered, grid.check, stages)
    tables = _tables(run, answered, stages)
    shown = galleries(run, answered, lambda: engines.anywhere(resources.device), stages)
    not_matched = tuple(_unmatched(run, answered))
    words = beside(grid.published, tables, answered.model)
    base = run.grid.base
    if base in answered.refused:
        why = ((answered.refused[base],),)
        title = f"{answered.model} cannot run {base}, which every difference is taken to"
        words.append(TextTable(title, ("why",), why))
    if not_matched:
        rows = tuple((text,) for text in not_matched)
        words.append(TextTable("What of the protocol is not matched", ("what",), rows))
    results = Results(
        tables,
        _figures(run, answered),
        shown,
        tuple(words),
        _costs(run, answered, engines, resources, stages),
    )
    if answered.several:
        results = _named(results, answered.model)
    return OfModel(run, answered, results, not_matched, proof)


def _unmatched(run: PreparedRun, answered: Answered) -> list[str]:
    """What of the protocol this run does not match, in sentences."""
    if run.protocol is None:
        return []
    found = list(answered.unmatched)
    for item in run.loaded:
        found += unmatched(run.protocol, benchmark=item.benchmark)
    methods = {variant.name: variant.method for variant in run.variants}
    strangers = not_their_papers(run.protocol, methods)
    return list(dict.fromkeys([*found, *([strangers] if strangers else [])]))


def join(found: Sequence[OfModel]) -> Results:
    """The results of all models, one after the other."""
    each = [one.results for one in found]
    return Results(
        tuple(table for one in each for table in one.tables),
        tuple(figure for one in each for figure in one.figures),
        tuple(gallery for one in each for gallery in one.galleries),
        tuple(table for one in each for table in one.text_tables),
        next((one.costs for one in each if one.costs is not None), None),
    )


def _decided(run: PreparedRun) -> bool:
    return any(q.yes_no for item in run.loaded for q in item.questions.values())


def _named(results: Results, model: str) -> Results:
    """Titles that say which of several models they are of."""
    return replace(
        results,
        tables=tuple(replace(table, model=model) for table in results.tables),
        figures=tuple(replace(f, title=f"{model}: {f.title}") for f in results.figures),
        text_tables=tuple(
            replace(t, title=t.title if model in t.title else f"{model}: {t.title}")
            for t in results.text_tables
        ),
        galleries=tuple(replace(g, benchmark=f"{g.benchmark}, {model}") for g in results.galleries),
    )


def _tables(run: PreparedRun, answered: Answered, stages: Stages) -> tuple[Table, ...]:
    wanted = [(item, mode) for item in run.loaded for mode in item.modes]
    stages.start(TABLES, len(wanted))
    tables = []
    for item, mode in wanted:
        table = _table(run, answered, item, mode)
        if table is not None:
            tables.append(table)
        stages.advance(TABLES)
    return tuple(tables)


def _table(run: PreparedRun, answered: Answered, item: LoadedBenchmark, mode: str) -> Table | None:
    """One benchmark and mode, over the samples that every method answered under every seed."""
    decodes = sorted((d for d in item.decodes if d.mode == mode), key=lambda d: d.seed or 0)
    there = [v.name for v in answered.can_run(run.variants) if mode in v.modes]
    if run.grid.base not in there:
        return None
    failed = answered.errors(item, there, decodes)
    if not item.questions.keys() - failed.keys():
        return None
    runs = {
        name: [answered.tally(item, name, decode, failed) for decode in decodes] for name in there
    }
    return method_tables.method_table(
        item.name,
        mode,
        runs,
        sections=run.grid.sections(),
        show=item.show,
        absent={v.name: v.modes for v in run.variants if mode not in v.modes},
        refused=answered.refused,
        failed=len(failed),
        base=run.grid.base,
        resamples=run.grid.resamples,
    )


def _figures(run: PreparedRun, answered: Answered) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    grid, base, resamples = run.grid, run.grid.base, run.grid.resamples
    if base in answered.refused:
        return ()
    greedy = Decode()
    for item in run.loaded:
        points = [
            point
            for point in run.points
            if item.name in grid.sweeps[point.method].benchmarks
            and point.variant.name not in answered.refused
        ]
        if points:
            names = [base, *(point.variant.name for point in points)]
            failed = answered.errors(item, names, [greedy])
            drawn = [(p, answered.tally(item, p.variant.name, greedy, failed)) for p in points]
            level = answered.tally(item, base, greedy, failed)
            figures += sweep_figures(item.name, drawn, level, resamples=resamples)
        methods = [name for name in positions(run, item) if name not in answered.refused]
        if methods and grid.position is not None:
            failed = answered.errors(item, methods, [greedy])
            by_method = {m: answered.answers(item, m, greedy) for m in methods}
            places = [place for place in run.places if place.sample.id not in failed]
            places = [place for place in places if place.sample.id in item.questions]
            if places:
                bins = grid.position.bins
                figures.append(
                    position_figure(item.name, places, by_method, bins=bins, resamples=resamples)
                )
    return tuple(figures)


def _costs(
    run: PreparedRun, answered: Answered, engines: Engines, resources: Resources, stages: Stages
) -> Costs | None:
    """The costs of the methods that decode greedily, if the grid asks for them."""
    spec = run.grid.cost
    item = _timed(run)
    if not spec.rounds or item is None or run.grid.base in answered.refused:
        return None
    methods = {v.name: v.method for v in answered.can_run(run.variants) if GREEDY in v.modes}
    asked = list(item.questions.values())[: spec.questions]
    stages.start(COST, (spec.rounds + 1) * len(methods))

    def advance() -> None:
        stages.advance(COST)

    engine = engines.anywhere(resources.device)
    base = run.grid.base
    return measure(engine, methods, asked, rounds=spec.rounds, base=base, advance=advance)


def _timed(run: PreparedRun) -> LoadedBenchmark | None:
    """The benchmark whose questions methods are timed on: the first that is answered greedily."""
    wanted = run.grid.cost.benchmark
    greedy = [item for item in run.loaded if GREEDY in item.modes]
    return next((item for item in greedy if not wanted or item.name == wanted), None)

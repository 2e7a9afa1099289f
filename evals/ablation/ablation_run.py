"""`cdkit ablate`: runs a grid and writes a folder with everything about the run."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from cdkit.errors import CdkitError, check_text
from cdkit.evals.ablation import ablation_manifest, grid_toml, plan
from cdkit.evals.ablation.ablation_galleries import galleries
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import (
    LoadedBenchmark,
    draw_world,
    load_benchmarks,
    resolve,
)
from cdkit.evals.ablation.grid_runner import Answers, Decode, GridRunner, batches_of
from cdkit.evals.ablation.placement import PlacedQuestion, placed
from cdkit.evals.ablation.plan import SweepPoint, Variant
from cdkit.evals.ablation.proof import prove
from cdkit.evals.ablation.sweep_figures import position_figure, sweep_figures
from cdkit.evals.reports import exports, markdown, method_tables, report
from cdkit.evals.reports.numbers import numbers
from cdkit.evals.reports.results import Costs, Figure, Results, Table
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.checkpoint_settings import notes
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.modes import BEAM, GREEDY, PLAIN, SAMPLE
from cdkit.evals.runner.pictures import load_picture
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.timing import measure
from cdkit.interfaces.benchmark import Answer, Tally

TABLES, COST = "intervals and tests", "cost"


@dataclass(frozen=True, eq=False)
class Ablation:
    """A grid with everything built that it names: what can be wrong with it is wrong by now."""

    grid: Grid
    folder: Path
    variants: tuple[Variant, ...]
    points: tuple[SweepPoint, ...]
    loaded: tuple[LoadedBenchmark, ...]
    places: tuple[PlacedQuestion, ...]
    """Of `grid.position`: the questions that it counts."""
    sources: Mapping[str, str]
    """SHA-256 of the grid's other files, by path: methods' and the placement file."""
    engine: AnswerEngine
    started: datetime


def new_folder(output: Path, name: str | None) -> Path:
    """An empty folder for one run; one that is there already is never written into."""
    if name is None:
        name = datetime.now().strftime("ablation-%Y%m%d-%H%M%S")
    if name in ("", ".", "..") or Path(name).name != name:
        raise CdkitError(f"--name must be the name of a folder inside --output, got {name!r}")
    check_text("--name", name)
    folder = output / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise CdkitError(
            f"{folder} is there already: give another --name, or remove it first"
        ) from None
    return folder


def prepare(
    grid: Grid,
    folder: Path,
    *,
    device: str = AUTO,
    tell: Callable[[str], None] = lambda line: None,
) -> Ablation:
    """Build the methods and the benchmarks, load the model; the world is drawn into `folder`.

    `tell` is given lines for the user, such as where the model is.

    Where the grid turns out to be wrong, an image cannot be read or the user interrupts, the folder
    is removed: the name stays free.
    """
    started = datetime.now(UTC)
    try:
        variants, points = plan.variants(grid), plan.sweep_points(grid)
        files = draw_world(grid.world, folder / "world") if grid.world is not None else None
        loaded = load_benchmarks(grid, files)
        places = _places(grid, loaded, files)
        sources = ablation_manifest.sources(grid, _placement(grid, files))
        for image in dict.fromkeys(q.image for item in loaded for q in item.questions.values()):
            load_picture(image)  # a truncated image is an error now, not after minutes
        model, processor = grid.chosen.load(device)
        kept = "; manifest.json holds it"
        for line in (grid.chosen.told(model), *notes(model, beams=BEAM in grid.decode, kept=kept)):
            tell(line)
        engine = AnswerEngine(model, processor, grid.temperature, num_beams=grid.num_beams)
        (folder / "config.toml").write_text(grid_toml.dumps(grid), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Ablation(grid, folder, variants, points, loaded, places, sources, engine, started)


def _placement(grid: Grid, files: object) -> Path | None:
    return Path(resolve(grid.position.placement, files)) if grid.position is not None else None


def _places(
    grid: Grid, loaded: Sequence[LoadedBenchmark], files: object
) -> tuple[PlacedQuestion, ...]:
    path = _placement(grid, files)
    if grid.position is None or path is None:
        return ()
    (item,) = (item for item in loaded if item.name == grid.position.benchmark)
    found = placed(item.benchmark.samples(), path)
    if not found:
        raise CdkitError(
            f"[position]: {path} places no object that {item.name} asks about; each image there "
            "needs an object whose category stands in a question with the answer yes"
        )
    return found


def ablate(ablation: Ablation, stages: Stages) -> Results:
    """Run it and leave predictions, metrics, manifest, tables and report in its folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(ablation.grid.threads or threads)
    try:
        return _ablate(ablation, stages)
    finally:
        torch.set_num_threads(threads)


def _ablate(ablation: Ablation, stages: Stages) -> Results:
    grid, folder, engine = ablation.grid, ablation.folder, ablation.engine
    runner = GridRunner(engine, {a.name: a for a in all_variants(ablation)}, stages)
    batches = batches_of(demand(ablation), grid.batch, engine.lengths)
    undecided = runner.run(batches, grid.batch)
    proof = prove(runner, batches, grid.check) if grid.check else None
    _write_predictions(folder / "predictions.jsonl", ablation, runner.answers)

    tables = _tables(ablation, runner.answers, stages)
    shown = galleries(grid, ablation.variants, ablation.loaded, engine, runner.answers, stages)
    costs = _costs(ablation, stages)
    results = Results(tables, _figures(ablation, runner.answers), shown, costs=costs)
    facts = ablation_manifest.manifest(
        folder.name,
        grid,
        engine,
        ablation.loaded,
        ablation.variants,
        proof,
        sources=ablation.sources,
        undecided=undecided,
        started=ablation.started,
        stages=stages.seconds,
    )
    _write_json(folder / "manifest.json", facts)
    _write_json(folder / "metrics.json", numbers(results))
    markdown.write(folder / "tables.md", results)
    report.write(folder / "report.html", results, facts, exports.write(folder, results))
    return results


def all_variants(ablation: Ablation) -> tuple[Variant, ...]:
    """The grid's methods and the points of its sweeps."""
    return (*ablation.variants, *(point.variant for point in ablation.points))


def demand(ablation: Ablation) -> Mapping[Question, Mapping[str, frozenset[Decode]]]:
    """What each distinct question is asked by: benchmarks that share it ask it once."""
    found: dict[Question, dict[str, frozenset[Decode]]] = {}
    for item in ablation.loaded:
        asked = asked_of(ablation, item.name)
        for question in item.questions.values():
            known = found.setdefault(question, {})
            for name, decodes in asked.items():
                known[name] = known.get(name, frozenset()) | decodes
    return found


def asked_of(ablation: Ablation, benchmark: str) -> dict[str, frozenset[Decode]]:
    """Arm's name -> the decodes that the benchmark's tables and figures need of it.

    A variant is not asked in a mode that it is not defined for.
    """
    decodes = _decodes(ablation.grid, benchmark)
    asked = {a.name: frozenset(d for d in decodes if d.mode in a.modes) for a in ablation.variants}
    for point in ablation.points:
        if benchmark in ablation.grid.sweeps[point.method].benchmarks:
            asked[point.variant.name] = frozenset({Decode()})
            asked[PLAIN] |= {Decode()}  # the level that the curves are seen against
    for name in _positions(ablation.grid, benchmark):
        asked[name] |= {Decode()}
    return {name: wanted for name, wanted in asked.items() if wanted}


def _positions(grid: Grid, benchmark: str) -> tuple[str, ...]:
    wanted = grid.position
    return wanted.methods if wanted is not None and wanted.benchmark == benchmark else ()


def _decodes(grid: Grid, benchmark: str) -> frozenset[Decode]:
    found = set[Decode]()
    for mode in grid.modes_of(benchmark):
        seeds = grid.seeds if mode == SAMPLE else (None,)
        found |= {Decode(mode, seed) for seed in seeds}
    return frozenset(found)


def _answers_of(
    item: LoadedBenchmark, variant: str, decode: Decode, answers: Answers
) -> dict[str, Answer]:
    return {name: answers[asked, variant, decode] for name, asked in item.questions.items()}


def _write_predictions(path: Path, ablation: Ablation, answers: Answers) -> None:
    with path.open("a", encoding="utf-8") as file:
        for item in ablation.loaded:
            for variant, decodes in asked_of(ablation, item.name).items():
                for decode in sorted(decodes, key=str):
                    head = {"benchmark": item.name, "method": variant, **asdict(decode)}
                    for name, answer in _answers_of(item, variant, decode, answers).items():
                        row = head | {"id": name} | asdict(answer)
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _tables(ablation: Ablation, answers: Answers, stages: Stages) -> tuple[Table, ...]:
    wanted = [
        (item, mode) for item in ablation.loaded for mode in ablation.grid.modes_of(item.name)
    ]
    stages.start(TABLES, len(wanted))
    tables = []
    for item, mode in wanted:
        decodes = [d for d in _decodes(ablation.grid, item.name) if d.mode == mode]
        decodes.sort(key=lambda decode: decode.seed or 0)
        runs = {
            variant.name: [_tally(item, variant.name, decode, answers) for decode in decodes]
            for variant in ablation.variants
            if mode in variant.modes
        }
        tables.append(
            method_tables.method_table(
                item.name,
                mode,
                runs,
                sections=ablation.grid.sections(),
                show=item.show,
                absent={
                    variant.name: variant.modes
                    for variant in ablation.variants
                    if mode not in variant.modes
                },
                resamples=ablation.grid.resamples,
            )
        )
        stages.advance(TABLES)
    return tuple(tables)


def _tally(item: LoadedBenchmark, variant: str, decode: Decode, answers: Answers) -> Tally:
    return item.benchmark.tally(_answers_of(item, variant, decode, answers))


def _figures(ablation: Ablation, answers: Answers) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    resamples = ablation.grid.resamples
    for item in ablation.loaded:
        points = [
            (point, _tally(item, point.variant.name, Decode(), answers))
            for point in ablation.points
            if item.name in ablation.grid.sweeps[point.method].benchmarks
        ]
        if points:
            plain = _tally(item, PLAIN, Decode(), answers)
            figures += sweep_figures(item.name, points, plain, resamples=resamples)
        if methods := _positions(ablation.grid, item.name):
            assert ablation.grid.position is not None  # else there were no methods
            by_method = {m: _answers_of(item, m, Decode(), answers) for m in methods}
            bins = ablation.grid.position.bins
            figures.append(
                position_figure(
                    item.name, ablation.places, by_method, bins=bins, resamples=resamples
                )
            )
    return tuple(figures)


def _costs(ablation: Ablation, stages: Stages) -> Costs | None:
    """The costs of the methods that decode greedily, if the grid asks for them."""
    spec = ablation.grid.cost
    if not spec.rounds:
        return None
    methods = {
        variant.name: variant.method for variant in ablation.variants if GREEDY in variant.modes
    }
    (item,) = (item for item in ablation.loaded if item.name == ablation.grid.timed)
    asked = list(item.questions.values())[: spec.questions]
    stages.start(COST, (spec.rounds + 1) * len(methods))

    def advance() -> None:
        stages.advance(COST)

    return measure(ablation.engine, methods, asked, rounds=spec.rounds, advance=advance)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

"""`cdkit score`: metrics of answers that any program made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cdkit.evals.cli.app import app, console, examples, guarded
from cdkit.evals.cli.usage import UsageError, check_name

if TYPE_CHECKING:
    from cdkit.evals.benchmarks.score_files import Scored

score = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(score, name="score", help="Score answers that any program made.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]
Answers = Annotated[
    Path,
    typer.Option(help="JSON lines with the question's id and the text, or a run's predictions."),
]
Part = Annotated[
    str | None,
    typer.Option(
        help="Of a run's predictions.jsonl: the part.",
        show_default="the one that was run on these questions",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(help="Of a run's predictions.jsonl: the method.", show_default="the only one"),
]
Model = Annotated[
    str | None,
    typer.Option(help="Of a run's predictions.jsonl: the model.", show_default="the only one"),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="Of a run's predictions.jsonl: greedy, sample or beam.", show_default="the only one"
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of a run's predictions.jsonl: the seed.", show_default="the mean over all"),
]


@score.command(
    epilog=examples(
        "cdkit score pope --questions coco_pope_random.json --answers answers.jsonl",
        "cdkit score pope --questions coco_pope_random.json --answers answers.jsonl "
        "--parser reference --json",
        "cdkit score pope --questions coco_pope_random.json --answers runs/vcd/predictions.jsonl",
    )
)
@guarded
def pope(
    questions: Annotated[Path, typer.Option(help="A POPE file: JSON lines with the questions.")],
    answers: Answers,
    parser: Annotated[
        str | None,
        typer.Option(
            help="How an answer is read: strict, reference, vcd, opera or icd.",
            show_default="strict, with reference beside it",
        ),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score yes/no answers to POPE (JSON lines with `question_id` and `text`)."""
    from cdkit.evals.benchmarks.pope import PARSERS
    from cdkit.evals.benchmarks.score_files import Picked, score_pope

    if parser is not None:
        check_name("--parser", parser, PARSERS)
    parsers = ("strict", "reference") if parser is None else (parser,)
    _show(score_pope(questions, answers, parsers, Picked(part, seed, method, model, mode)), as_json)


@score.command(
    epilog=examples(
        "cdkit score chair --captions captions.jsonl --ground-truth truth.json.gz",
        "cdkit score chair --captions captions.jsonl --lemmas wordnet "
        "--instances instances_val2014.json --coco-captions captions_val2014.json",
    )
)
@guarded
def chair(
    captions: Annotated[Path, typer.Option(help="JSON lines with image_id and caption.")],
    ground_truth: Annotated[
        Path | None,
        typer.Option(help="JSON: {image id: [objects]} (.gz too).", show_default=False),
    ] = None,
    instances: Annotated[
        list[Path] | None,
        typer.Option(help="COCO's instances_*.json instead of --ground-truth; repeat it for more."),
    ] = None,
    coco_captions: Annotated[
        list[Path] | None,
        typer.Option(help="COCO's captions_*.json, with --instances; repeat it for more."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="A folder that keeps the objects read from --instances.", show_default=False
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            help="A synonym list: one object with its synonyms a line.",
            show_default="the list of CHAIR's authors",
        ),
    ] = None,
    lemmas: Annotated[
        str,
        typer.Option(
            help="How words are brought to their base form: simple, or wordnet as papers do, which "
            "needs nltk and its data."
        ),
    ] = "simple",
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score captions by CHAIR: how many objects they mention that are not in the image."""
    from cdkit.evals.benchmarks.chair import CHAIR
    from cdkit.evals.benchmarks.object_words import SCORERS
    from cdkit.evals.benchmarks.score_files import Picked, score_chair

    if not (instances and coco_captions) if ground_truth is None else instances or coco_captions:
        raise UsageError(
            "CHAIR needs to know what is in the images: give both the instances and the captions "
            "file of COCO, or a ground truth file alone (--instances and --coco-captions, or "
            "--ground-truth)"
        )
    check_name("scorer of captions", lemmas, SCORERS)
    if cache is not None and not instances:
        raise UsageError("--cache keeps what --instances and --coco-captions give: give them too")
    benchmark = CHAIR(
        synonyms,
        instances=tuple(instances or ()),
        captions=tuple(coco_captions or ()),
        ground_truth=ground_truth,
        scorer=lemmas,
        cache=cache,
    )
    _show(score_chair(benchmark, captions, Picked(part, seed, method, model, mode)), as_json)


@score.command(epilog=examples("cdkit score mme --answers eval_tool/Your_Results"))
@guarded
def mme(
    answers: Annotated[
        Path,
        typer.Option(
            help="A folder with a file TASK.txt for each task: image, question, truth, answer; or, "
            "with --questions, JSON lines or a run's predictions."
        ),
    ],
    questions: Annotated[
        Path | None, typer.Option(help="The folder of MME's questions.", show_default=False)
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score answers to MME in the text format of MME's evaluation tool."""
    from cdkit.evals.benchmarks.score_files import Picked, score_mme

    if questions is None and answers.is_file():
        raise UsageError(
            f"--answers {answers} is a file: give the folder of MME's questions too (--questions), "
            "or a folder of TASK.txt files with the answers in their fourth column"
        )
    _show(score_mme(answers, questions, Picked(part, seed, method, model, mode)), as_json)


@score.command(
    epilog=examples(
        "cdkit score amber --questions data/query/query_discriminative.json --answers answers.json"
    )
)
@guarded
def amber(
    questions: Annotated[Path, typer.Option(help="AMBER's query_discriminative*.json.")],
    answers: Annotated[Path, typer.Option(help="JSON list, or lines, with id and response.")],
    annotations: Annotated[
        Path | None,
        typer.Option(help="AMBER's annotations.json.", show_default="near the questions"),
    ] = None,
    parser: Annotated[
        str | None,
        typer.Option(
            help="How an answer is read: strict or official.",
            show_default="strict, with official beside it",
        ),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score yes/no answers to AMBER's discriminative part (the positive class is "no")."""
    from cdkit.evals.benchmarks.amber import PARSERS
    from cdkit.evals.benchmarks.score_files import Picked, score_amber

    if parser is not None:
        check_name("--parser", parser, PARSERS)
    parsers = ("strict", "official") if parser is None else (parser,)
    picked = Picked(part, seed, method, model, mode)
    _show(score_amber(questions, annotations, answers, parsers, picked), as_json)


@score.command(
    "amber-generative",
    epilog=examples(
        "cdkit score amber-generative --questions data/query/query_generative.json "
        "--answers answers.json",
        "cdkit score amber-generative --questions data/query/query_generative.json "
        "--answers answers.json --scorer official --discriminative answers.json",
    ),
)
@guarded
def amber_generative(
    questions: Annotated[Path, typer.Option(help="AMBER's query_generative.json.")],
    answers: Annotated[Path, typer.Option(help="JSON list, or lines, with id and response.")],
    scorer: Annotated[
        str,
        typer.Option(
            help="How nouns are found and compared: official (needs nltk, spaCy and their data), "
            "listed (needs nltk and its data), or simple."
        ),
    ] = "simple",
    discriminative: Annotated[
        Path | None,
        typer.Option(
            help="Answers to the yes/no questions, for the AMBER score; they may be in the same "
            "file.",
            show_default=False,
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="AMBER's annotations.json.", show_default="near the questions"),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score descriptions by AMBER: CHAIR, Cover, Hal, Cog, and the AMBER score of both parts."""
    from cdkit.evals.benchmarks.amber_generative import AMBERGenerative
    from cdkit.evals.benchmarks.score_captions import score_amber_generative
    from cdkit.evals.benchmarks.score_files import Picked

    benchmark = AMBERGenerative(questions, annotations, scorer=scorer)
    picked = Picked(part, seed, method, model, mode)
    scored = score_amber_generative(benchmark, answers, picked, discriminative=discriminative)
    _show(scored, as_json)


@score.command(
    epilog=examples(
        "cdkit score opope --questions coco_pope_random.json --captions captions.jsonl",
        "cdkit score opope --questions coco_pope_random.json "
        "--captions runs/vcd/predictions.jsonl --scorer simple",
    )
)
@guarded
def opope(
    questions: Annotated[Path, typer.Option(help="A POPE file: JSON lines with the questions.")],
    captions: Annotated[
        Path,
        typer.Option(help="JSON lines with image_id and caption, or the predictions of CHAIR."),
    ],
    scorer: Annotated[
        str,
        typer.Option(help="What counts as a mention: official, or simple or wordnet as in CHAIR."),
    ] = "official",
    synonyms: Annotated[
        Path | None,
        typer.Option(
            help="A synonym list: one object with its synonyms a line.",
            show_default="the list of CHAIR's authors",
        ),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Answer POPE's questions from captions: is the object mentioned?"""
    from cdkit.evals.benchmarks.score_captions import score_opope
    from cdkit.evals.benchmarks.score_files import Picked

    picked = Picked(part, seed, method, model, mode)
    _show(score_opope(questions, captions, (scorer,), picked, synonyms), as_json)


@score.command(
    epilog=examples(
        "cdkit score hallusionbench --questions HallusionBench.json "
        "--answers HallusionBench_result.json"
    )
)
@guarded
def hallusionbench(
    questions: Annotated[Path, typer.Option(help="HallusionBench.json.")],
    answers: Annotated[
        Path,
        typer.Option(
            help="Its rows with model_prediction; or JSON lines with id and text, or a run's "
            "predictions."
        ),
    ],
    parser: Annotated[
        str | None,
        typer.Option(
            help="How an answer is read: strict or anywhere.",
            show_default="strict, with anywhere beside it",
        ),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score yes/no answers to HallusionBench by rule: questions, figures and question pairs."""
    from cdkit.evals.benchmarks.score_choices import score_hallusionbench
    from cdkit.evals.benchmarks.score_files import Picked

    parsers = ("strict", "anywhere") if parser is None else (parser,)
    picked = Picked(part, seed, method, model, mode)
    _show(score_hallusionbench(questions, answers, parsers, picked), as_json)


@score.command(
    epilog=examples("cdkit score scienceqa --questions problems.json --answers answers.jsonl")
)
@guarded
def scienceqa(
    questions: Annotated[Path, typer.Option(help="ScienceQA's problems.json.")],
    answers: Answers,
    splits: Annotated[
        Path | None,
        typer.Option(help="ScienceQA's pid_splits.json.", show_default="beside the questions"),
    ] = None,
    split: Annotated[str, typer.Option(help="The split whose questions were asked.")] = "test",
    parser: Annotated[
        str | None,
        typer.Option(
            help="How an answer is read: letter or llava.",
            show_default="letter, with llava beside it",
        ),
    ] = None,
    part: Part = None,
    method: Method = None,
    model: Model = None,
    mode: Mode = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Score one-letter answers to ScienceQA's questions about images."""
    from cdkit.evals.benchmarks.score_choices import score_scienceqa
    from cdkit.evals.benchmarks.score_files import Picked

    parsers = ("letter", "llava") if parser is None else (parser,)
    picked = Picked(part, seed, method, model, mode)
    scored = score_scienceqa(questions, answers, parsers, picked, splits=splits, split=split)
    _show(scored, as_json)


def _show(scored: "Scored", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(scored.plain(), allow_nan=False))
        return
    screen = console()
    counted = ", ".join(f"{number:,} {what}" for what, number in scored.counted.items())
    screen.print(Text(f"{scored.benchmark}: {counted}", style="bold"))
    for table in _tables(scored):
        screen.print(table)
    readers = ", ".join(f"{name} (version {number})" for name, number in scored.readers.items())
    for line in (f"read by {readers}", *scored.notes):
        screen.print(Text(line))
    for line in scored.warnings:
        screen.print(Text(f"warning: {line}", style="yellow"))
    for path, digest in scored.files.items():
        screen.print(Text(f"sha256 {digest}  {path}", style="dim"), soft_wrap=True)


def _tables(scored: "Scored") -> list[Table]:
    """A row for each prefix of the metrics; rows with the same metrics share a table."""
    from cdkit.evals.reports.formatting import DASH, heading, number

    rows: dict[str, dict[str, str]] = {}
    for name, value in scored.metrics.items():
        prefix, _, metric = name.rpartition(".")
        if value is None:
            shown = DASH
        else:
            shown = f"{value:,}" if isinstance(value, int) else number(value, name)
        label = "all answers" if name in scored.shared else prefix or scored.row
        rows.setdefault(label, {})[metric] = shown
    tables: dict[tuple[str, ...], Table] = {}
    for label, cells in rows.items():
        columns = tuple(cells)
        if columns not in tables:
            tables[columns] = Table(box=SIMPLE_HEAD, pad_edge=False)
            tables[columns].add_column("")
            for metric in columns:
                tables[columns].add_column(heading(metric), justify="right")
        tables[columns].add_row(label, *cells.values())
    return list(tables.values())

"""`cdkit data`: look at a data folder, or make one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app, console, examples, guarded

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at a folder of benchmark files, or make one (docs/data.md has the layout).",
)
app.add_typer(data, name="data")


@data.command(
    epilog=examples("cdkit data check my_data", "cdkit data check my_data --images --json")
)
@guarded
def check(
    folder: Annotated[Path, typer.Argument(help="The data folder.")],
    images: Annotated[
        bool, typer.Option("--images", help="Read each image in full, not its head only.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Tell what is there, missing or odd, with known versions by SHA-256; exit 1 if it is broken.

    Broken is what would stop or spoil a run: a file that does not read, an image that is missing,
    does not open, or is a link out of its folder. A benchmark that is not there is not broken.
    """
    from cdkit.evals.data.check import check as look
    from cdkit.evals.data.render import as_json, as_table

    report = look(folder, decode=images)
    if json_:
        typer.echo(json.dumps(as_json(report), indent=2))
    else:
        console().print(as_table(report), soft_wrap=True)
    if not report.whole:
        raise typer.Exit(1)


@data.command(
    "micro-world",
    epilog=examples(
        "cdkit data micro-world micro_data",
        "cdkit eval --model micro --method plain --bench pope --data micro_data",
    ),
)
@guarded
def micro_world(
    out: Annotated[Path, typer.Argument(help="The folder to write to: new, or empty.")],
    images: Annotated[int, typer.Option(min=1, help="Images with POPE questions.")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures.")] = 2026,
) -> None:
    """Draw the embedded world: images with POPE, CHAIR and MME files, laid out to be run.

    Nothing is downloaded. The same arguments write the same files.
    """
    from cdkit.evals.microworld import write_benchmarks

    _check_empty(out)
    write_benchmarks(out, images=images, seed=seed)
    console().print(f"wrote {out}", highlight=False, soft_wrap=True, markup=False)


@data.command(
    "build-pope",
    epilog=examples(
        "cdkit data build-pope --instances coco/annotations/instances_val2014.json --out my_pope"
    ),
)
@guarded
def build_pope(
    instances: Annotated[Path, typer.Option(help="An instances file of COCO, or in its format.")],
    out: Annotated[Path, typer.Option(help="The folder to write to: new, or empty.")],
    images: Annotated[int, typer.Option(min=1, help="Images to ask about.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and of what is asked.")] = 0,
    objects: Annotated[
        int, typer.Option(min=1, help="Questions about present objects an image, as many absent.")
    ] = 3,
) -> None:
    """Ask POPE's questions about other images: coco_pope_{random,popular,adversarial}.json.

    Images with enough annotated categories are drawn by the seed; half of the questions are about
    absent ones: uniform, the most frequent, or the one most often beside the present one before it.
    """
    from cdkit.evals.benchmarks.benchmark_files import read_source
    from cdkit.evals.benchmarks.coco import read_instances
    from cdkit.evals.benchmarks.pope_building import polls_of_instances, write_polls

    _check_empty(out)
    source = read_source(instances)
    polls = polls_of_instances(read_instances(source), images=images, seed=seed, each=objects)
    out.mkdir(parents=True, exist_ok=True)
    for split, asked in polls.items():
        write_polls(out / f"coco_pope_{split}.json", asked)
    made = {"instances_sha256": source.sha256, "images": images, "seed": seed, "objects": objects}
    (out / "built_from.json").write_text(json.dumps(made) + "\n", encoding="utf-8")
    console().print(
        f"wrote {len(polls)} files of {2 * objects * images:,} questions to {out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CdkitError(f"{out} is there and not an empty folder: name a new one")

"""`cdkit data`: check a data folder, or make one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app, console, examples, guarded

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check a folder of benchmark files, or make one (docs/data.md has the layout).",
)
app.add_typer(data, name="data")


@data.command(
    epilog=examples("cdkit data check my_data", "cdkit data check my_data --images --json")
)
@guarded
def check(
    folder: Annotated[Path, typer.Argument(help="The data folder.")],
    images: Annotated[
        bool, typer.Option("--images", help="Read each image in full, not only its header.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """List what a data folder holds, what is missing and what is odd; exit with 1 if it is broken.

    Files of known published versions are recognised by their SHA-256. A folder is broken if
    something in it would stop or spoil a run: a file that cannot be read, or an image that is
    missing, does not open or is a link out of the folder. A benchmark may be absent.
    """
    from cdkit.evals.data.check import check as check_folder
    from cdkit.evals.data.render import as_json, as_table

    report = check_folder(folder, decode=images)
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
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the pictures.")] = 2026,
) -> None:
    """Draw synthetic images with POPE, CHAIR and MME files, as a data folder for `cdkit eval`.

    Nothing is downloaded. The same arguments write the same files.
    """
    from cdkit.evals.microworld import write_benchmarks

    _check_empty(out)
    write_benchmarks(out, images=images, seed=seed)
    console().print(f"wrote {out}", highlight=False, soft_wrap=True, markup=False)


@data.command(
    "micro-pairs",
    epilog=examples(
        "cdkit data micro-pairs micro_pairs",
        "cdkit vectors nullu --model micro --data micro_pairs --out nullu.safetensors",
    ),
)
@guarded
def micro_pairs(
    out: Annotated[Path, typer.Argument(help="The folder to write to: new, or empty.")],
    pairs: Annotated[int, typer.Option(min=1, help="Images, each with a pair of captions.")] = 70,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of pictures and captions.")] = 2026,
) -> None:
    """Draw synthetic images, each with a true and a hallucinated caption, for `cdkit vectors`.

    Nothing is downloaded. The same arguments write the same files.
    """
    from cdkit.evals.microworld.caption_pairs import write_pairs

    _check_empty(out)
    write_pairs(out, pairs=pairs, seed=seed)
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
    seed: Annotated[int, typer.Option(min=0, help="Random seed of images and questions.")] = 0,
    objects: Annotated[
        int,
        typer.Option(min=1, help="Present objects asked about per image, and as many absent ones."),
    ] = 3,
) -> None:
    """Make POPE's questions about other images: coco_pope_{random,popular,adversarial}.json.

    The seed draws images with enough annotated objects. Half of the questions are about absent
    objects: a random one (random), the most frequent one (popular), or the one that co-occurs most
    with the object asked before (adversarial).
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
    (out / "built_from.json").write_text(json.dumps(made) + "\n", encoding="utf-8", newline="\n")
    console().print(
        f"wrote {len(polls)} files of {2 * objects * images:,} questions to {out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CdkitError(f"{out} is there and not an empty folder: name a new one")

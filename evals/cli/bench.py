"""`cdkit bench`: what contrastive decoding costs, compared with plain decoding."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import Device, Dtype, app, console, examples, guarded, quiet, say
from cdkit.evals.cli.usage import usage


@app.command(
    epilog=examples(
        "cdkit bench",
        "cdkit bench --batch 1 --batch 16 --method cmac --out bench_micro",
        "cdkit bench --method cmac --each",
        "cdkit bench --method cmac --batch 16 --profile",
        "cdkit bench --shape deep --device cpu --threads 1",
        "cdkit bench --shape 0.5b --dtype bfloat16 --device cpu --rounds 3",
        "cdkit bench --shape 7b --device cuda --batch 1 --batch 32 --out bench_7b",
    )
)
@guarded
def bench(
    shape: Annotated[
        str,
        typer.Option(
            help="micro: the model in the package. 0.5b, 7b: random weights in the shapes of LLaVA "
            "with Qwen2-0.5B and of LLaVA-1.5-7B, in bfloat16 without --dtype. deep: as deep as "
            "7b, but so narrow that calls are the cost. Nothing is downloaded."
        ),
    ] = "micro",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A preset or a .toml file; repeat it for more.", show_default="cmac, vcd, icd"
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure: two-pass, textbook, cdkit, cdkit:none, or with NAME an "
            "optimisation, cdkit:only-NAME and cdkit:without-NAME; repeat it for more. plain "
            "always runs.",
            show_default="two-pass, textbook, cdkit",
        ),
    ] = None,
    each: Annotated[
        bool,
        typer.Option("--each", help="Also measure each optimisation alone, and all but it."),
    ] = False,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Prompts in a batch; repeat it for more.", show_default="1"),
    ] = None,
    text_tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Text tokens of a prompt; repeat it for more lengths.", show_default="50"
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens of every answer.")] = 64,
    image_tokens: Annotated[
        int | None,
        typer.Option(
            help="Image tokens of a prompt, a square number; fixed to 64 for micro.",
            show_default="576",
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = "auto",
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", show_default="torch's choice")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of weights, prompts and pixels.")] = 0,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also show where the time of one answer goes."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write bench.json, bench.md and bench.svg into this folder.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print bench.json instead of tables.")
    ] = False,
) -> None:
    """Measure the time and memory of contrastive decoding against plain `generate`.

    First it checks that all variants give the same logits, and exits with status 1 if they do not.
    Then it measures them in turn, round after round: plain decoding, the plain algorithm with a
    pass for each branch (two-pass), for VCD a loop over two model calls a token (textbook), and
    cdkit. At last it counts the operators that a token takes.
    docs/performance.md says what is measured and how to read it.
    """
    quiet()
    import json

    from cdkit.evals.runner import progress
    from cdkit.evals.speed import bench_files, bench_run, bench_tables
    from cdkit.evals.speed.bench_settings import DEFAULT, EACH, METHODS, BenchSettings

    with usage():
        settings = BenchSettings(
            shape=shape,
            methods=tuple(method or METHODS),
            variants=(*(variant or DEFAULT), *(EACH if each else ())),
            batches=tuple(batch or (1,)),
            text_tokens=tuple(text_tokens or (50,)),
            new_tokens=new_tokens,
            image_tokens=image_tokens,
            dtype=dtype or "auto",
            device=device,
            rounds=rounds,
            threads=threads,
            seed=seed,
            profile=profile,
        )
    if out is not None and out.exists() and not out.is_dir():
        raise CdkitError(f"--out {out} is a file: name a folder")
    with progress.progress_bars(Console(stderr=True)) as stages:
        found = bench_run.bench(settings, stages, say)
    if out is not None:
        bench_files.write_bench(found, out)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    screen = console()
    screen.print(bench_tables.render(found.to_dict()))
    if out is not None:
        screen.print(f"written: {out}", highlight=False, soft_wrap=True, markup=False)

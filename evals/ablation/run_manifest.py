"""What a run's numbers depend on, as plain data: versions, files, prompts, parsers and limits."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.grid_results import OfModel
from cdkit.evals.ablation.grid_toml import as_plain
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.ablation.scores import errors
from cdkit.evals.runner.fingerprints import data_hash
from cdkit.evals.runner.journal import Journal, JournalRow
from cdkit.evals.runner.margins import tolerance_of
from cdkit.evals.runner.modes import SAMPLE
from cdkit.evals.runner.run_folder import read_settings
from cdkit.evals.runner.versions import versions

PACKAGES = ("cdkit", "torch", "transformers", "pytorch-lightning", "numpy")
SHOWN = ("cdkit", "torch", "transformers")
NOISE_SEED = 0
"""The seed of distorted branches: one for every run, so that seeds vary only the sampling."""


def manifest(
    grid: Grid,
    found: Sequence[OfModel],
    journal: Journal,
    *,
    started: datetime,
    stages: Mapping[str, float],
) -> dict[str, Any]:
    """Everything but the numbers.

    Args:
        grid: What was asked.
        found: What each model's answers gave.
        journal: The answers, with the heads of their files.
        started: When this start of the run began.
        stages: Stage -> seconds, of what followed the answers.

    Returns:
        Plain data; `summary` is what the report shows of it.
    """
    run, answered = found[0].run, [each.answered for each in found]
    identity = read_settings(run.folder)["identity"]
    models = {each.answered.model: _model(each, run, journal, identity["models"]) for each in found}
    starts = pieces(journal)
    wall = (datetime.now(UTC) - started).total_seconds()
    every = list(_rows(journal, answered))
    return {
        "name": run.folder.name,
        "about": grid.summary,
        "date": started.isoformat(timespec="seconds"),
        "settings": as_plain(grid),
        "protocol": grid.around.record() if grid.around is not None else {},
        "unmatched": list(dict.fromkeys(text for each in found for text in each.unmatched)),
        "models": models,
        "model": next(iter(models.values())) if len(models) == 1 else {"name": ", ".join(models)},
        "methods": _methods(run),
        "refused": {each.model: dict(each.refused) for each in answered if each.refused},
        "left_out": dict(grid.left_out),
        "parts": _parts(run),
        "seeds": {
            "sampling": list(grid.seeds) if SAMPLE in run.grid.decode else [None],
            "noise_of_branches": NOISE_SEED,
            "world": grid.world.seed if grid.world else None,
        },
        "world": vars(grid.world) if grid.world else None,
        "sources": dict(run.sources),
        "versions": versions(*PACKAGES),
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "pieces": starts,
        "wall_seconds": round(sum(piece["wall_seconds"] for piece in starts), 3),
        "seconds_of_this_start": round(wall, 3),
        "stages": {stage: round(spent, 2) for stage, spent in stages.items()},
        "model_seconds": round(journal.seconds, 3),
        "seconds": _seconds(found, every),
        "tokens": sum(row.tokens for row in every),
        "errors": errors(found),
        "near_ties": near_ties(run.grid, models, every),
        "first_token": _first_token(grid, found),
        "statistics": {
            "interval": "paired percentile bootstrap, 95 %, images (and seeds) resampled",
            "resamples": grid.resamples,
            "test": "sign-flip by image, Holm over each table",
        },
        "summary": _summary(run.grid, found, models, starts),
    }


def pieces(journal: Journal) -> list[dict[str, Any]]:
    """One entry for each time that a model was started: where, with how much at once, how long."""
    found: dict[int, dict[str, Any]] = {}
    for head, wall in zip(journal.heads, journal.walls, strict=True):
        piece = found.setdefault(
            int(head["piece"]),
            {
                "model": head["model"].get("name"),
                "started": head["started"],
                "batch_size": head["batch_size"],
                "processes": head["processes"],
                "nodes": head["nodes"],
                "threads": head["threads"],
                "devices": [],
                "wall_seconds": 0.0,
            },
        )
        piece["devices"].append(f"{head['host']}: {head['device']}")
        piece["wall_seconds"] = max(piece["wall_seconds"], wall)
    return list(found.values())


def near_ties(
    grid: Grid, models: Mapping[str, Mapping[str, Any]], rows: Iterable[JournalRow]
) -> dict[str, Any]:
    """How many answers had, at some step, a token so close to the best that rounding may choose.

    Another batch size, device or library may give such an answer another text.
    """
    tolerances = {
        name: tolerance_of(getattr(torch, str(facts["dtype"]))) for name, facts in models.items()
    }
    count = total = 0
    for row in rows:
        if row.margin is None:
            continue
        # margins of a sampling run are taken after the temperature
        scale = grid.temperature if row.mode == SAMPLE else 1.0
        total += 1
        count += row.margin < tolerances[row.model] / scale
    return {
        "tolerance": max(tolerances.values()),
        "answers": count,
        "of": total,
        "rule": "at some step a change of one logit by less than the tolerance could let another "
        "token win: the next best, or one at the edge of the plausibility constraint; not known of "
        "beams, of methods with a loop of their own, and under a checkpoint's settings that move "
        "logits (see generation)",
    }


def _seconds(found: Sequence[OfModel], rows: Iterable[JournalRow]) -> list[dict[str, Any]]:
    """Seconds in the model by model, method and decode mode, where no pass was shared."""
    spent: dict[tuple[str, str, str], float] = {}
    shared = set[tuple[str, str, str]]()
    for row in rows:
        key = (row.model, row.method, row.mode)
        spent[key] = spent.get(key, 0.0) + row.seconds
        if row.shared:
            shared.add(key)
    return [
        {"model": each.run.model, "method": v.name, "mode": mode, "seconds": round(spent[key], 3)}
        for each in found
        for v in each.run.variants
        for mode in v.modes
        for key in ((each.run.model, each.run.hashes[v.name], mode),)
        if key in spent and key not in shared
    ]


def _rows(journal: Journal, answered: Sequence[Answered]) -> Iterable[JournalRow]:
    """The rows that answer what is asked now, each once."""
    names = {each.model for each in answered}
    hashes = {digest for each in answered for digest in each.hashes.values()}
    return (row for row in journal.rows.values() if row.model in names and row.method in hashes)


def _model(
    each: OfModel, first: PreparedRun, journal: Journal, files: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What is recorded of a model, and what it is asked otherwise than the first one."""
    run = each.run
    heads = [head for head in journal.heads if head["model"].get("name") == run.model]
    found = {**heads[-1]["model"], "files": dict(files.get(run.model, {}))}
    for key, mine, others in (
        ("parts", _parts(run), _parts(first)),
        ("methods", _methods(run), _methods(first)),
    ):
        if mine != others:
            found[key] = mine
    return found


def _methods(run: PreparedRun) -> dict[str, Any]:
    return {
        variant.name: {
            "hash": run.hashes[variant.name],
            "modes": list(variant.method.modes),
            "resolved": variant.method.to_dict(),
        }
        for variant in run.variants
    }


def _parts(run: PreparedRun) -> dict[str, Any]:
    return {item.name: _part(item) for item in run.loaded}


def _part(item: LoadedBenchmark) -> dict[str, Any]:
    return {
        "hash": data_hash(item.benchmark),
        "images": str(item.images.absolute()),
        "samples": len(item.benchmark.samples()),
        "asked": len(item.questions),
        "decode": list(item.modes),
        "benchmark": item.benchmark.describe(),
    }


def _first_token(grid: Grid, found: Sequence[OfModel]) -> dict[str, Any] | None:
    if not grid.first_token:
        return None
    proofs = {each.answered.model: each.proof for each in found if each.proof is not None}
    return {
        "rule": "a yes/no question is decided by its first token where that token reads yes or "
        "no in any case; any other answer is generated in full",
        "proof": {name: asdict(proof) for name, proof in proofs.items()},
    }


def _summary(
    grid: Grid,
    found: Sequence[OfModel],
    models: Mapping[str, Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    several = len(models) > 1
    summary = {}
    if grid.around is not None:
        summary["protocol"] = f"{grid.around.name}: {grid.around.summary}".removesuffix(": ")
    for name, facts in models.items():
        of = f" of {name}" if several else ""
        parameters = f"{facts['parameters'] / 1e6:.2f} M parameters, {facts['dtype']}"
        summary[f"model{of}" if not several else f"model {name}"] = f"{name} ({parameters})"
        summary[f"prompt{of}"] = str(facts["prompt"])
    noise = f"noise of the branches {NOISE_SEED}"
    sampling = (
        f"sampling {', '.join(map(str, grid.seeds))} at temperature {grid.temperature:g}; "
        if SAMPLE in grid.decode
        else ""
    )
    summary["seeds"] = sampling + noise
    sizes = dict.fromkeys(str(piece["batch_size"]) for piece in starts)
    paddings = dict.fromkeys(str(facts["padding"]) for facts in models.values())
    summary["batch"] = f"{', '.join(sizes)}, {', '.join(paddings)} padding"
    if grid.first_token:
        summary["first tokens"] = (
            "a yes/no question is decided by a first token that reads yes or no; text after it is "
            "not read"
        )
    summary["software"] = ", ".join(f"{k} {v}" for k, v in versions(*SHOWN).items())
    if grid.left_out:
        reasons = (f"{name} ({reason})" for name, reason in grid.left_out.items())
        summary["left out"] = "; ".join(reasons)
    for each in found:
        for name, why in each.answered.refused.items():
            summary[f"refused by {each.answered.model}: {name}"] = why
    if grid.world is not None:
        of = " of the confirmation world" if grid.world.confirmation else ""
        summary["world"] = f"{grid.world.images} images{of}, seed {grid.world.seed}"
    for each in found:
        proof = each.proof
        if proof is not None and proof.questions:
            of = f", {each.answered.model}" if several else ""
            summary[f"stored logits{of}"] = (
                f"equal to generate's on {proof.questions} questions under {proof.methods} "
                f"methods: {proof.logits_compared} logits within {proof.largest_difference:.1g}, "
                f"the first words of {proof.tokens_compared} answers the same "
                f"({proof.near_ties} near ties)"
            )
    return summary

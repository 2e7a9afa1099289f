"""What a result depends on, as plain data: versions, files, prompt, parser, limits, seeds."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

import cdkit
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import LoadedBenchmark
from cdkit.evals.ablation.plan import Variant
from cdkit.evals.ablation.proof import Proof
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.checkpoint_settings import recorded
from cdkit.evals.runner.fingerprints import model_files
from cdkit.evals.runner.run_manifest import versions
from cdkit.interfaces.benchmark import sha256

SOFTWARE = ("cdkit", "torch", "transformers")


def manifest(
    name: str,
    grid: Grid,
    engine: AnswerEngine,
    loaded: Sequence[LoadedBenchmark],
    variants: Sequence[Variant],
    proof: Proof | None,
    *,
    sources: Mapping[str, str],
    undecided: int,
    started: datetime,
    stages: Mapping[str, float],
) -> dict[str, object]:
    """Everything but the numbers; `summary` is what the report shows of it."""
    model = engine.model
    example = loaded[0].benchmark.samples()[0].prompt
    wall = (datetime.now(UTC) - started).total_seconds()
    return {
        "name": name,
        "about": grid.summary,
        "date": started.isoformat(timespec="seconds"),
        "wall_seconds": wall,
        "stages": {stage: round(spent, 2) for stage, spent in stages.items()},
        "versions": versions("cdkit", "torch", "transformers", "numpy"),
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": str(model.device),
        },
        "model": {
            "name": grid.model,
            "type": model.config.model_type,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "files": model_files(str(model.name_or_path), grid.revision),
            "generation": recorded(model.generation_config),
            "revision": getattr(model.config, "_commit_hash", None),
        },
        "prompt": engine.prompt(example),
        "padding": engine.processor.tokenizer.padding_side,
        "batch": grid.batch,
        "temperature": grid.temperature,
        "seeds": {
            "sampling": list(grid.seeds),
            "noise_of_branches": engine.noise_seed,
            "world": grid.world.seed if grid.world else None,
        },
        "world": vars(grid.world) if grid.world else None,
        "benchmarks": {item.name: item.benchmark.describe() for item in loaded},
        "sources": dict(sources),
        "methods": {variant.name: variant.method.to_dict() for variant in variants},
        "decode_modes": {variant.name: list(variant.method.modes) for variant in variants},
        "left_out": dict(grid.left_out),
        "first_token": {
            "rule": "a yes/no question is decided by its first token where that token reads yes or "
            "no in any case; any other answer is generated in full",
            "yes_tokens": list(engine.yes_ids),
            "no_tokens": list(engine.no_ids),
            "generated_instead": undecided,
            "proof": asdict(proof) if proof else None,
        },
        "statistics": {
            "interval": "paired percentile bootstrap, 95 %, images (and seeds) resampled",
            "resamples": grid.resamples,
            "test": "sign-flip by image, Holm over each table",
        },
        "summary": _summary(grid, engine, proof, wall, undecided),
    }


def sources(grid: Grid, placement: Path | None) -> dict[str, str]:
    """The SHA-256 of the methods' own files and of the placement file, by path."""
    presets = cdkit.presets()
    named = [Path(s.preset) for s in grid.methods.values() if s.preset not in presets]
    paths = [*named, *([placement] if placement is not None else [])]
    return {str(path): sha256(path.read_bytes()) for path in dict.fromkeys(paths)}


def _summary(
    grid: Grid, engine: AnswerEngine, proof: Proof | None, wall: float, undecided: int
) -> dict[str, str]:
    parameters = sum(p.numel() for p in engine.model.parameters())
    summary = {
        "model": f"{grid.model} ({parameters / 1e6:.2f} M parameters, {engine.model.dtype})",
        "prompt": engine.prompt("QUESTION"),
        "seeds": f"sampling {', '.join(map(str, grid.seeds))} at temperature {grid.temperature:g}; "
        f"noise of the branches {engine.noise_seed}",
        "batch": f"{grid.batch}, {engine.processor.tokenizer.padding_side} padding",
        "first tokens": f"{undecided} answers to yes/no questions were generated in full because "
        "their first token is neither yes nor no; text after one that decides is not read",
        "software": ", ".join(f"{k} {v}" for k, v in versions(*SOFTWARE).items()),
        "wall time": f"{wall:.0f} s without imports",
    }
    if grid.left_out:
        reasons = (f"{name} ({reason})" for name, reason in grid.left_out.items())
        summary["left out"] = "; ".join(reasons)
    if grid.world is not None:
        summary["world"] = f"{grid.world.images} images, seed {grid.world.seed}"
    if proof is not None and proof.questions:
        summary["stored logits"] = (
            f"equal to generate's on {proof.questions} questions under {proof.methods} methods: "
            f"{proof.logits_compared} logits within {proof.largest_difference:.1g}, "
            f"the first words of {proof.tokens_compared} answers the same "
            f"({proof.near_ties} near ties)"
        )
    return summary

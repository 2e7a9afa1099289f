"""What a run's numbers depend on, as plain data."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

from cdkit.evals.runner.journal import Journal
from cdkit.evals.runner.journal_scores import AnsweredPart
from cdkit.evals.runner.margins import tolerance_of
from cdkit.evals.runner.modes import SAMPLE
from cdkit.evals.runner.run_folder import Fingerprints
from cdkit.evals.runner.run_settings import RunSettings
from cdkit.methods.method import Method

PACKAGES = ("cdkit", "torch", "transformers", "pytorch-lightning", "numpy")


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages, as installed."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def manifest(
    name: str,
    settings: RunSettings,
    identity: Fingerprints,
    method: Method,
    parts: Sequence[AnsweredPart],
    journal: Journal,
) -> dict[str, Any]:
    """Everything but the numbers, from the settings and from the heads of the journal."""
    model = journal.heads[-1]["model"]
    return {
        "name": name,
        "settings": settings.to_dict(),
        "method": {
            "name": settings.shown_method,
            "hash": identity.method,
            "resolved": method.to_dict(),
        },
        "mode": settings.mode,
        "seeds": {"sampling": list(settings.draws), "noise_of_branches": 0},
        "model": {"name": settings.model, "files": dict(identity.model), **model},
        "parts": {part.name: _part(part, identity) for part in parts},
        "versions": versions(*PACKAGES),
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "pieces": pieces(journal),
        "wall_seconds": sum(piece["wall_seconds"] for piece in pieces(journal)),
        "model_seconds": round(journal.seconds, 3),
        "tokens": sum(row.tokens for row in journal.rows.values()),
        "errors": {part.name: part.errors for part in parts if part.errors},
        "near_ties": near_ties(settings, str(model["dtype"]), parts),
    }


def pieces(journal: Journal) -> list[dict[str, Any]]:
    """One entry for each time that the run was started: where, with how much at once, how long."""
    found: dict[int, dict[str, Any]] = {}
    for head, wall in zip(journal.heads, journal.walls, strict=True):
        piece = found.setdefault(
            int(head["piece"]),
            {
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


def near_ties(settings: RunSettings, dtype: str, parts: Sequence[AnsweredPart]) -> dict[str, Any]:
    """How many answers had, at some step, a token so close to the best that rounding may choose.

    Another batch size, device or library may give such an answer another text.
    """
    tolerance = tolerance_of(getattr(torch, dtype))
    if settings.mode == SAMPLE:
        tolerance /= settings.temperature  # margins are taken after it
    rows = [row for part in parts for by_id in part.rows.values() for row in by_id.values()]
    margins = [row.margin for row in rows if row.margin is not None]
    return {
        "tolerance": tolerance,
        "answers": sum(margin < tolerance for margin in margins),
        "of": len(margins),
        "rule": "at some step a change of one logit by less than the tolerance could let another "
        "token win: the next best, or one at the edge of the plausibility constraint; not known of "
        "beams, of methods with a loop of their own, and under a checkpoint's settings that move "
        "logits (see generation)",
    }


def _part(part: AnsweredPart, identity: Fingerprints) -> dict[str, Any]:
    return {
        "hash": identity.data[part.name],
        "images": str(part.images.absolute()),
        "samples": len(part.benchmark.samples()),
        "asked": len(part.asked),
        "benchmark": part.benchmark.describe(),
    }

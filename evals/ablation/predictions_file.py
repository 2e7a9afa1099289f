"""predictions.jsonl: every answer of a run, by what tables call its model, method and benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdkit.evals.ablation.demand import asked_of
from cdkit.evals.ablation.grid_results import OfModel
from cdkit.evals.runner.whole_files import as_json, write_whole


def write(path: Path, answered: Sequence[OfModel]) -> None:
    """One row an answer: by model, benchmark, method and decode, in the samples' order."""
    write_whole(path, "".join(f"{as_json(row)}\n" for row in _rows(answered)))


def _rows(answered: Sequence[OfModel]) -> Iterator[Mapping[str, Any]]:
    for each in answered:
        run, model = each.run, each.answered
        for item in run.loaded:
            for variant, decodes in asked_of(run, item).items():
                if variant in model.refused:
                    continue
                for decode in sorted(decodes, key=str):
                    head = {
                        "model": model.model,
                        "part": item.name,
                        "method": variant,
                        "mode": decode.mode,
                        "seed": decode.seed,
                    }
                    for name, row in model.of(item, variant, decode).items():
                        if row.error is not None:
                            yield {**head, "id": name, "error": row.error}
                        else:
                            yield {**head, "id": name, **vars(row.answer), "margin": row.margin}

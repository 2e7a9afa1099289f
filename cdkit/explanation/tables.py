"""The numbers of an explanation as rows of plain values, which data frames are made of."""

from typing import Any

from cdkit.explanation.explained import ExplainedPrompt


def tables(found: ExplainedPrompt) -> dict[str, list[dict[str, Any]]]:
    """The rows by table; see `Explanation.tables`."""
    rows: dict[str, list[dict[str, Any]]] = {
        "tokens": [],
        "candidates": [],
        "attention": [],
        "positions": [],
    }
    for answer in found.answers:
        for number, step in enumerate(answer.steps):
            at = {"method": answer.name, "step": number}
            rows["tokens"].append(
                at
                | {
                    "token": step.token,
                    "text": step.text,
                    "changed": number in answer.changed,
                    "removed": sum(step.removed.values()),
                    "removed_mass": step.removed_mass,
                    "alpha_scale": step.alpha_scale,
                }
            )
            rows["candidates"] += [
                at
                | {
                    "token": one.token,
                    "text": one.text,
                    "column": column,
                    "probability": probability,
                    "chosen": one.token == step.token,
                    "removed_by": one.removed_by,
                }
                for one in step.candidates
                for column, probability in one.probabilities.items()
            ]
        for branch, maps in answer.maps.items():
            for number in range(len(maps.attention)):
                for index, layer in enumerate(found.layers):
                    mask = None if maps.mask is None else maps.mask[number, index]
                    rows["attention"].append(
                        {
                            "method": answer.name,
                            "step": number,
                            "branch": branch,
                            "layer": layer,
                            "share": float(maps.attention[number, index].sum()),
                            "masked": 0.0 if mask is None else float(mask.mean()),
                        }
                    )
        rows["positions"] += [
            {
                "method": answer.name,
                "layer": line.layer,
                "axis": line.axis,
                "image_token": number,
                "ordinary": float(before),
                "calibrated": float(after),
            }
            for line in answer.positions
            for number, (before, after) in enumerate(
                zip(line.ordinary, line.calibrated, strict=True)
            )
        ]
    return rows

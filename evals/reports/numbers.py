"""Every number of the tables and figures, as plain data for a JSON file."""

from dataclasses import asdict

from cdkit.evals.reports.results import Results


def numbers(results: Results) -> dict[str, object]:
    """`tables` (method -> metric -> its cell), `figures` and `costs`, unrounded and unscaled."""
    costs = results.costs.ratios if results.costs is not None else {}
    return {
        "tables": [
            {
                "benchmark": table.benchmark,
                **({"model": table.model} if table.model else {}),
                "mode": table.mode,
                "base": table.base,
                "tests": table.tests,
                "strictest_level": table.strictest,
                "seeds": table.seeds,
                "images": table.images,
                "samples": table.samples,
                "methods": {
                    name: {metric: asdict(cell) for metric, cell in row.cells.items()}
                    for name, row in table.rows.items()
                },
                "absent": {name: list(modes) for name, modes in table.absent.items()},
                "refused": dict(table.refused),
                "failed": table.failed,
            }
            for table in results.tables
        ],
        "figures": [asdict(figure) for figure in results.figures],
        "costs": {name: asdict(ratio) for name, ratio in costs.items()},
    }

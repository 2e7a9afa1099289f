"""The command that explains an answer of a run: `cdkit explain --run`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cdkit.evals.runner.modes import GREEDY


def explain_command(
    folder: Path,
    part: str,
    sample: str,
    methods: Sequence[str],
    *,
    model: str | None = None,
    mode: str = GREEDY,
    seed: int | None = None,
) -> str:
    """Write the command that explains methods' answers to one question of a run.

    Args:
        folder: The run's folder, as it was given: the command works where that path does.
        part: The benchmark's name in the run.
        sample: The question's id.
        methods: The methods, as the run calls them.
        model: The model; None where the run has one.
        mode: The decode mode of the answers.
        seed: The seed of sampled answers.

    Returns:
        A line for a shell.
    """
    words = ["cdkit", "explain", "--run", str(folder), "--question", f"{part}/{sample}"]
    words += ["--method", ",".join(methods)] if methods else []
    words += ["--model", model] if model is not None else []
    words += ["--mode", mode] if mode != GREEDY else []
    words += ["--seed", str(seed)] if seed is not None else []
    return shlex.join(words)

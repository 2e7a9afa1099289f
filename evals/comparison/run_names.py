"""Which runs are compared, under which names, and with which of them."""

from collections.abc import Collection, Mapping, Sequence

from cdkit.errors import CdkitError
from cdkit.evals.runner.finished import FinishedRun
from cdkit.registry import unknown

NamedRuns = Mapping[str, FinishedRun]
"""The runs by the names that tables give them; the first is the base of every difference."""


def name_runs(
    runs: Sequence[FinishedRun], names: Sequence[str] | None = None, base: str | None = None
) -> NamedRuns:
    """Runs under `names`, else under their methods' names; `base` comes first, else the first run.

    Names must differ, and no run may be there twice.
    """
    if len(runs) < 2:
        raise CdkitError(f"a comparison needs two runs or more, got {len(runs)}")
    places = [(run.folder.resolve(), run.model, run.method) for run in runs]
    if twice := [run.folder for i, run in enumerate(runs) if places[i] in places[:i]]:
        raise CdkitError(f"{twice[0]} is given twice: a run beside itself shows nothing")
    if names is not None and len(names) != len(runs):
        raise CdkitError(
            f"--names has {len(names)} names for {len(runs)} runs: give one each, with commas "
            "between them, in the order of the runs"
        )
    called = [name.strip() for name in names] if names is not None else _methods(runs)
    if "" in called:
        raise CdkitError(f"--names has an empty name: {', '.join(map(repr, called))}")
    for place, name in enumerate(called):
        if name in called[:place]:
            one, other = runs[called.index(name)].folder, runs[place].folder
            raise CdkitError(
                f"{one} and {other} are both called {name!r}: tell them apart with "
                f"--names, one name for each of the {len(runs)} runs"
            )
    if base is not None and base not in called:
        raise CdkitError(f"--base: {unknown('run', base, called)}")
    found = dict(zip(called, runs, strict=True))
    first = base or called[0]
    return {first: found[first]} | found


def _methods(runs: Sequence[FinishedRun]) -> list[str]:
    """The methods' names, with the models' where a folder has several models."""
    models = {
        folder: {r.model for r in runs if r.folder == folder} for folder in {r.folder for r in runs}
    }
    return [
        f"{run.method}, {run.model}" if len(models[run.folder]) > 1 else run.method for run in runs
    ]


def in_all(names: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """What every run has, in the base's order.

    Args:
        names: Run -> the names of its parts; the base first.
    """
    first, *others = names.values()
    return tuple(name for name in first if all(name in other for other in others))


def not_compared(names: Mapping[str, Collection[str]], what: str) -> list[str]:
    """A note for each run that has more than all have; a CdkitError where all share nothing.

    Args:
        names: Run -> the names of its parts; the base first.
        what: What messages call a part.
    """
    both = in_all(names)
    if not both:
        text = "; ".join(f"{run}: {', '.join(of_run)}" for run, of_run in names.items())
        raise CdkitError(f"the runs share no {what} ({text}): run them on the same ones")
    alone = {run: [name for name in of_run if name not in both] for run, of_run in names.items()}
    return [
        f"not compared, since not all runs have it: {', '.join(more)} of {run}"
        for run, more in alone.items()
        if more
    ]

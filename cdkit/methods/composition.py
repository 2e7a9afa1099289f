"""Several methods as one: `cdkit.load("cmac+vcd")`."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cdkit.errors import CdkitError
from cdkit.interfaces.combiner import COMBINERS, LogitCombiner
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of

Changes = TypeVar("Changes", Intervention, StateIntervention)

DEFAULT_BRANCH = re.compile(r"distorted(_\d+)?")
"""Names that a branch gets where a configuration gives it none."""


def compose(*methods: Method, name: str | None = None) -> Method:
    """Put methods together: all of their branches, interventions, schedules and other parts.

    Two contrasts become one, in which each branch has its own alpha. A combiner that reads no
    branch (FLB) acts on the result of the other one. One that reads inner layers (VISTA, DoLa) acts
    first, and branches are contrasted with its result. Where names would clash, branches without a
    name of their own are called after their method. Parts without an effect are left out.

    Args:
        methods: The methods; at least one.
        name: The name of the result; None for the methods' names with "+" between them.

    Returns:
        The method.

    Raises:
        CdkitError: If two of them have parts that would undo each other, or the same part twice.
    """
    if not methods:
        raise CdkitError("compose needs a method, got none")
    result = methods[0]
    for method in methods[1:]:
        result = _joined(result, method)
    return result if name is None else replace(result, name=name)


def _joined(a: Method, b: Method) -> Method:
    if _says(a) == _says(b):
        raise _refused(a, b, "are the same method: leave one of them out")
    names = _branch_names(a, b)
    combiner = _combiner(a, b, *names)
    branches = tuple(
        Branch(new[branch.name], branch.distortions)
        for method, new in zip((a, b), names, strict=True)
        for branch in method.branches
        if branch.name in new
    )
    parts: dict[str, Any] = dict(
        name=f"{a.name}+{b.name}",
        combiner=combiner,
        branches=branches,
        calibrator=_one_of(a, b, "calibrator"),
        interventions=_joined_parts(
            a, b, *(_renamed(m.interventions, own) for m, own in zip((a, b), names, strict=True))
        ),
        state_interventions=_joined_parts(
            a,
            b,
            *(_renamed(m.state_interventions, own) for m, own in zip((a, b), names, strict=True)),
        ),
        prompt_branches=_prompt_branches(a, b, *names),
        readout=_one_of(a, b, "readout"),
        schedules=_schedules(a, b),
        loop=_one_of(a, b, "loop"),
        constraint=_one_of(a, b, "constraint"),
        summary=f"{a.name} and {b.name} at once",
        source="; ".join(source for source in (a.source, b.source) if source),
    )
    try:
        return Method(**parts)
    except CdkitError as error:
        raise CdkitError(f"cannot put {a.name} and {b.name} together: {error}") from None


def _refused(a: Method, b: Method, why: str) -> CdkitError:
    return CdkitError(f"cannot put {a.name} and {b.name} together: both {why}")


def _says(method: Method) -> Method:
    """The method without what describes it."""
    return replace(method, name="", summary="", source="")


def _reads_others(method: Method) -> bool:
    """Whether other logits than the original ones count."""
    return bool(method.live_branches) or method.readout is not None


def _branch_names(a: Method, b: Method) -> tuple[dict[str, str], dict[str, str]]:
    """For each method its branches and what the composed method calls them.

    Branches that nothing uses, of which no part speaks, are left out.
    """
    kept = [
        [
            branch
            for branch in method.branches
            if branch in method.live_branches
            or any(branch.name in i.branches for i in method.interventions)
            or any(
                branch.name in (*i.branches, *i.prompt_branches) for i in method.state_interventions
            )
        ]
        for method in (a, b)
    ]
    for one, other in itertools.product(*kept):
        if one.distortions == other.distortions:
            what = ", ".join(map(kind_of, one.distortions))
            raise _refused(
                a,
                b,
                f"contrast with the same branch ({what}): take one of them",
            )
    new = [{branch.name: branch.name for branch in own} for own in kept]
    for name in sorted(new[0].keys() & new[1].keys()):
        if not DEFAULT_BRANCH.fullmatch(name):
            raise _refused(a, b, f"have a branch {name!r}: give one of the two another name")
        for method, names in zip((a, b), new, strict=True):
            own = re.sub(r"\W", "_", method.name)
            names[name] = own if name == "distorted" else f"{own}_{name}"
    if clash := set(new[0].values()) & set(new[1].values()):
        raise _refused(
            a,
            b,
            f"would have a branch {min(clash)!r}: give their branches other names",
        )
    return new[0], new[1]


def _combiner(
    a: Method, b: Method, of_a: Mapping[str, str], of_b: Mapping[str, str]
) -> LogitCombiner:
    """What combines the logits of both."""
    active = [m for m in (a, b) if _reads_others(m) or not m.combiner.is_identity]
    if not active:
        return a.combiner
    if len(active) == 1:
        return active[0].combiner.renamed_branches(of_a if active[0] is a else of_b)
    reading = [m for m in active if _reads_others(m)]
    if len(reading) < 2:
        reads = reading[0] if reading else a
        own = reads.combiner.renamed_branches(of_a if reads is a else of_b)
        return _in_turn(own, (b if reads is a else a).combiner)
    one, other = a.combiner.renamed_branches(of_a), b.combiner.renamed_branches(of_b)
    layers = [m for m in (a, b) if m.readout is not None and not m.live_branches]
    if a.readout is None and b.readout is None:
        both = one.joined(other, tuple(of_a.values()), tuple(of_b.values()))
        if both is not None:
            return both
    elif len(layers) == 1 and (a.readout is None or b.readout is None):
        # what inner layers say mends the model's logits; then branches are contrasted with these
        first, then, names = (one, other, of_b) if layers[0] is a else (other, one, of_a)
        return _in_turn(first, then, then_branches=tuple(names.values()))
    raise _refused(
        a,
        b,
        f"combine the logits of branches or layers, by {kind_of(a.combiner)} and by "
        f"{kind_of(b.combiner)}, which do not join: take one of them",
    )


def _in_turn(first: LogitCombiner, then: LogitCombiner, **parameters: Any) -> LogitCombiner:
    """The registered combiner that is made of two."""
    kind: Any = next(c for c in COMBINERS.values() if c.two_in_turn)
    made: LogitCombiner = kind(first, then, **parameters)
    return made


def _one_of(a: Method, b: Method, part: str) -> Any:
    """A part that a method has once: that of the method in which it has an effect."""
    found = [
        own
        for own in (getattr(a, part), getattr(b, part))
        if own is not None and not getattr(own, "is_identity", False)
    ]
    if len(found) == 2 and found[0] != found[1]:
        raise _refused(
            a,
            b,
            f"bring a {part} ({_shown(found[0])} and {_shown(found[1])}), and a method has one: "
            f"take one of the methods, or give both the same with "
            f"cdkit.compose(cdkit.load({a.name!r}, ...), cdkit.load({b.name!r}, ...))",
        )
    return found[0] if found else a.__dict__[part]


def _shown(part: object) -> str:
    values = ", ".join(f"{name} = {value!r}" for name, value in vars(part).items())
    return f"{kind_of(part)}({values})"


def _schedules(a: Method, b: Method) -> tuple[Any, ...]:
    """What scales alpha; a schedule would scale the other method's contrast, too."""
    if a.schedules != b.schedules and _reads_others(a) and _reads_others(b):
        scaling, other = (a, b) if a.schedules else (b, a)
        raise _refused(
            a,
            b,
            f"contrast, and {kind_of(scaling.schedules[0])} of {scaling.name} would scale the "
            f"alpha of {other.name}, too: take one of them, or one without a schedule",
        )
    return a.schedules or b.schedules


def _renamed(parts: Sequence[Changes], names: Mapping[str, str]) -> list[Changes]:
    """The parts in branches with other names."""
    changed: list[Any] = list(parts)
    return [replace(i, branches=tuple(names.get(n, n) for n in i.branches)) for i in changed]


def _joined_parts(
    a: Method, b: Method, first: Sequence[Any], second: Sequence[Any]
) -> tuple[Any, ...]:
    for one in first:
        for other in second:
            where = set(one.branches) & set(other.branches)
            if type(one) is type(other) and where:
                raise _refused(
                    a,
                    b,
                    f"have the intervention {kind_of(one)} in branch {min(where)!r}, where one "
                    "would change what the other made: take one of them",
                )
    return (*first, *second)


def _prompt_branches(
    a: Method, b: Method, of_a: Mapping[str, str], of_b: Mapping[str, str]
) -> tuple[Branch, ...]:
    """The branches that run for the prompt alone; one that both have runs once."""
    joined: dict[str, Branch] = {}
    for method, names in ((a, of_a), (b, of_b)):
        for part in method.state_interventions:
            moved = [n for n in part.prompt_branches if names.get(n, n) != n]
            if moved:
                raise _refused(
                    a,
                    b,
                    f"have a branch {moved[0]!r}, whose states {kind_of(part)} of {method.name} "
                    "reads: give one of the two another name",
                )
        for branch in method.prompt_branches:
            if joined.setdefault(branch.name, branch) != branch:
                raise _refused(
                    a,
                    b,
                    f"run a branch {branch.name!r} for the prompt, and not the same one: give one "
                    "of the two another name",
                )
    return tuple(joined.values())

"""A method: distorted branches, interventions and a calibrator, and how their logits combine."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.html_table import html_table
from cdkit.interfaces.combiner import LogitCombiner, State
from cdkit.interfaces.constraint import Constraint
from cdkit.interfaces.decoding_loop import MODES, DecodingLoop, Mode
from cdkit.interfaces.distortion import (
    AttentionDistortion,
)
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.interfaces.readout import LayerReadout
from cdkit.interfaces.schedule import AlphaSchedule
from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.methods.branch import ORIGINAL, Branch
from cdkit.methods.declarations import check_fields_of
from cdkit.methods.part_kinds import describe, kind_of, numbered, with_inner
from cdkit.methods.part_results import (
    check_float,
    check_kept,
    result_error,
    said_of,
    tensor_and_state,
    unwritten,
    wrong_result,
)

NO_CONSTRAINT = "none"
"""What a configuration has in place of the constraint's table if it rules no token out."""


@dataclass(frozen=True, repr=False)
class Method:
    """A decoding method as a value: hashable, and equal to another one if their fields are equal.

    Raises:
        CdkitError: If the parts do not fit together, such as two branches of one name.
    """

    name: str
    """The method's name, used in messages and tables: one line."""
    combiner: LogitCombiner
    """How the logits of all branches become those that `generate` reads."""
    branches: tuple[Branch, ...] = ()
    """The distorted branches; the original branch is always there."""
    calibrator: PositionCalibrator | None = None
    """The positions that cross-modal logits use; None for the model's positions."""
    interventions: tuple[Intervention, ...] = ()
    """Changes of the cross-modal attention in chosen branches, applied in this order."""
    state_interventions: tuple[StateIntervention, ...] = ()
    """Changes of hidden states in chosen branches, applied in this order."""
    prompt_branches: tuple[Branch, ...] = ()
    """Branches that run for the prompt alone: state interventions read their states."""
    readout: LayerReadout | None = None
    """Which inner layers of the original branch give logits; None for none."""
    schedules: tuple[AlphaSchedule, ...] = ()
    """What scales alpha at each step; the factors are multiplied."""
    loop: DecodingLoop | None = None
    """The decode loop; None for Hugging Face's."""
    constraint: Constraint | None = None
    """Which tokens stay candidates; None where all do."""
    summary: str = ""
    """One line on what the method does."""
    source: str = ""
    """Where a preset's parameters come from."""

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise CdkitError(
                f"a method's name must be one line of visible characters, got {self.name!r}"
            )
        check_fields_of(self)
        names = [branch.name for branch in self.branches]
        every = [*names, *(branch.name for branch in self.prompt_branches)]
        if len(set(every)) < len(every):
            raise CdkitError(f"branch names must differ, got {', '.join(every)}")
        try:
            hash(self)
        except TypeError as error:
            raise CdkitError(
                f"{self.name} cannot be hashed ({error}): parameters that hold several values are "
                "tuples"
            ) from None
        blind = [b.name for b in self.branches if any(d.removes_image for d in b.prompt)]
        for intervention in self.interventions:
            if not set(intervention.branches) - set(blind):
                raise CdkitError(
                    f"{kind_of(intervention)} acts on no branch that sees the image: name some of "
                    f"{', '.join(n for n in (ORIGINAL, *names) if n not in blind)}"
                )
            for name in intervention.branches:
                if name not in (ORIGINAL, *names):
                    raise CdkitError(
                        f"{kind_of(intervention)} acts on branch {name!r}, but {self.name} has "
                        f"{', '.join((ORIGINAL, *names))}"
                    )
        self._check_states(names, blind)
        self._check_uses(names)
        for name, parameter in self.combiner.names.items():
            if name not in names and self.readout is None:
                raise CdkitError(
                    f"{parameter} names branch {name!r}, but {self.name} has "
                    f"{', '.join(names) or 'no distorted branch'}"
                )
        if self.schedules and not self.branches and self.readout is None:
            raise CdkitError(
                f"{kind_of(self.schedules[0])} scales alpha, but {self.name} contrasts with no "
                "branch: give it one, or take the schedule out"
            )
        if self.schedules and not self.combiner.contrastive:
            raise CdkitError(
                f"{kind_of(self.schedules[0])} scales alpha, but {kind_of(self.combiner)} does not "
                "take differences to the original branch; use the combiner 'contrast'"
            )
        if self.loop is not None and self.stateful:
            raise CdkitError(
                f"{kind_of(self.loop)} takes tokens back, so {self.name} cannot carry a state from "
                "step to step: use no schedule, and a combiner that depends on no step"
            )
        if self.loop is not None and self.remembering is not None:
            raise CdkitError(
                f"{kind_of(self.loop)} takes tokens back, so {kind_of(self.remembering)}, which "
                f"remembers what an answer's rows showed, cannot run in {self.name}: take one of "
                "them out"
            )

    def _check_states(self, names: Sequence[str], blind: Sequence[str]) -> None:
        """Raise where a state intervention names a branch that is not there, or none."""
        wanted = set[str]()
        for part in self.state_interventions:
            there = (ORIGINAL, *names)
            strange = [name for name in part.branches if name not in there]
            if strange or not part.branches:
                acts = f"branch {strange[0]!r}" if strange else "no branch"
                raise CdkitError(
                    f"{kind_of(part)} acts on {acts}, but {self.name} has {', '.join(there)}"
                )
            unseen = [name for name in part.branches if name in blind]
            if unseen and part.reads & {"image_features", "image_attention"}:
                raise CdkitError(
                    f"{kind_of(part)} reads the image, which branch {unseen[0]!r} does not see: "
                    "let it act on other branches"
                )
            if self.loop is not None and part.needs_whole_calls:
                raise CdkitError(
                    f"{kind_of(self.loop)} may put several tokens of an answer into one call of "
                    f"the decoder, and {kind_of(part)} needs one call for each: use one of them"
                )
            reads = part.prompt_branches if "prompt_states" in part.reads else ()
            every = (*there, *(branch.name for branch in self.prompt_branches))
            for name in reads:
                if name not in every:
                    raise CdkitError(
                        f"{kind_of(part)} reads the prompt's states in branch {name!r}, but "
                        f"{self.name} has {', '.join(every)}: give it that branch in "
                        "[[prompt_branches]]"
                    )
            wanted.update(reads)
        for branch in self.prompt_branches:
            if branch.name not in wanted:
                raise CdkitError(
                    f"no state intervention of {self.name} reads the states of prompt branch "
                    f"{branch.name!r}, so it would do nothing: take it out"
                )

    def _check_uses(self, names: Sequence[str]) -> None:
        """Raise where the combiner lacks other logits, or never uses those that are there."""
        given = [*names, *(["readout"] if self.readout is not None else [])]
        switch = self.combiner.switch
        if switch and not given and self.combiner.uses("any"):
            raise CdkitError(
                f"{self.name} has no distorted branch to contrast with, so "
                f"{switch}={getattr(self.combiner, switch)} would do nothing: set {switch} = 0, or "
                "give it a branch"
            )
        if given and not switch and not any(map(self.combiner.uses, given)):
            raise CdkitError(
                f"{kind_of(self.combiner)} reads no other logits, so {given[0]!r} of {self.name} "
                "would do nothing: take it out, or use the combiner 'contrast'"
            )
        if not given and self.combiner.uses("any"):
            raise CdkitError(
                f"{kind_of(self.combiner)} needs other logits, but {self.name} has no branch and "
                "no readout; give it one"
            )

    def __repr__(self) -> str:
        """The parts with their parameters and formulas, a line each."""
        told = [f"<Method {self.name}" + (f": {self.summary}" if self.summary else "")]
        for place, part in self._outer_parts():
            values = describe(part)
            kind = values.pop("kind")
            given = ", ".join(f"{name}={value!r}" for name, value in values.items())
            at = place.removesuffix(f".{kind}")
            told.append(f"  {at}: {kind}({given})")
            if getattr(part, "formula", ""):
                told.append(f"    {part.formula}")
        return "\n".join(told) + ">"

    def _repr_html_(self) -> str:
        rows = list[tuple[str, ...]]()
        for place, part in self._outer_parts():
            values = describe(part)
            kind = values.pop("kind")
            given = ", ".join(f"{name}={value!r}" for name, value in values.items())
            formula = str(getattr(part, "formula", ""))
            rows.append((place.removesuffix(f".{kind}"), kind, given, formula))
        caption = f"Method {self.name}" + (f": {self.summary}" if self.summary else "")
        return html_table(caption, ("place", "part", "parameters", "formula"), rows)

    @property
    def live_branches(self) -> tuple[Branch, ...]:
        """The branches whose logits can change the result."""
        return tuple(branch for branch in self.branches if self.combiner.uses(branch.name))

    @property
    def live_state_interventions(self) -> tuple[StateIntervention, ...]:
        """The state interventions that are not switched off."""
        return tuple(part for part in self.state_interventions if not part.is_identity)

    @property
    def is_identity(self) -> bool:
        """Whether the method has no effect; then the stock model runs unchanged."""
        return (
            not self.live_branches
            and not self.interventions
            and not self.live_state_interventions
            and self.readout is None
            and self.loop is None
            and self.combiner.is_identity
            and (self.constraint is None or self.constraint.is_identity)
            and (self.calibrator is None or self.calibrator.is_identity)
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its parts read, such as vectors: parameters that are paths."""
        values = (getattr(part, f.name) for _, part in self.parts() for f in fields(part))
        return tuple(value for value in values if isinstance(value, Path))

    @property
    def lacks(self) -> str:
        """What its parts need before it can run, such as a file; empty where nothing is missing."""
        missing = ((kind_of(part), part.lacks) for _, part in self.parts())
        return "; ".join(f"{kind} needs {what}" for kind, what in missing if what)

    def check_complete(self) -> None:
        """Raise a CdkitError where the method lacks something that it needs to run."""
        if lacks := self.lacks:
            raise CdkitError(f"{self.name} cannot run yet: {lacks}")

    @property
    def stateful(self) -> bool:
        """Whether a step's logits depend on the steps before it."""
        return self.combiner.stateful or bool(self.schedules)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The decode modes that the method is defined for."""
        return tuple(m for m in MODES if self.loop is None or m in self.loop.modes)

    @property
    def whole_prompt_parts(
        self,
    ) -> tuple[AttentionDistortion | Intervention | StateIntervention, ...]:
        """The parts that need all rows of a prompt in one call."""
        parts: list[AttentionDistortion | Intervention] = [
            *self.interventions,
            *(d for branch in self.branches for d in branch.attention),
        ]
        parts = [part for part in parts if part.needs_whole_prompt or part.remembers]
        return (*parts, *(p for p in self.live_state_interventions if p.needs_whole_calls))

    @property
    def remembering(self) -> AttentionDistortion | Intervention | StateIntervention | None:
        """The first part that keeps something from step to step; None where none does."""
        return next((part for part in self.whole_prompt_parts if part.remembers), None)

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        """Combine the logits of one step, and rule out what the constraint does not allow.

        Args:
            original: Raw next-token logits of the original branch.
            others: Raw next-token logits of the distorted branches and readouts, by their names.
            step: Which token of the answer is predicted, from 0.
            state: The state that the step before returned; empty at the first step.

        Returns:
            The combined logits, -inf on tokens that are ruled out; and the combiner's new state.
        """
        with unwritten(self.combiner, "combine", original, *others.values(), *state.values()):
            made: object = self.combiner.combine(original, others, step=step, state=state)
        combined, state = tensor_and_state(
            self.combiner, "combine", made, original.shape, "check_combiner", what="logits"
        )
        check_float(self.combiner, "combine", combined, "check_combiner", like=original)
        check_kept(self.combiner, state, original.shape[0], "the state")
        if state and not self.combiner.stateful:
            raise CdkitError(
                f"{kind_of(self.combiner)} returns a state, but does not declare stateful = True: "
                "declare it, or return the state that it was given"
            )
        if self.constraint is not None and not self.constraint.is_identity:
            combined = combined.masked_fill(~self._allowed(original), -math.inf)
        return combined, state

    def _allowed(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, "rows vocab"]:
        """What the constraint allows, held to the shape of the logits."""
        assert self.constraint is not None
        with unwritten(self.constraint, "allowed", original):
            allowed: object = self.constraint.allowed(original)
        if not isinstance(allowed, Tensor) or allowed.shape != original.shape:
            raise wrong_result(
                self.constraint, "allowed", allowed, original.shape, "check_constraint"
            )
        if allowed.dtype != torch.bool:
            raise result_error(
                self.constraint, "allowed", said_of(allowed), "True or False", "check_constraint"
            )
        return allowed

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Go through all parts, the combiner first.

        A part that is a parameter of another one, such as a selector, follows that part; its place
        ends in the parameter's name.

        Yields:
            The part's place as a dotted name, such as "noise.diffusion_noise"; and the part.
        """
        for place, part in self._outer_parts():
            yield from with_inner(place, part)

    def _outer_parts(self) -> Iterator[tuple[str, Any]]:
        yield "combiner", self.combiner
        if self.constraint is not None:
            yield "constraint", self.constraint
        if self.calibrator is not None:
            yield "calibrator", self.calibrator
        if self.readout is not None:
            yield "readout", self.readout
        if self.loop is not None:
            yield "loop", self.loop
        yield from numbered("schedules", self.schedules)
        yield from numbered("interventions", self.interventions)
        yield from numbered("state_interventions", self.state_interventions)
        for branch in (*self.branches, *self.prompt_branches):
            yield from numbered(branch.name, branch.distortions)

    def with_parts(self, change: Callable[[str, Any], Any]) -> "Method":
        """Replace the parts.

        Args:
            change: Called with the place and the part, for each part that is not a parameter of
                another one; returns what replaces it.

        Returns:
            The new method.
        """
        parts = iter([change(place, part) for place, part in self._outer_parts()])

        def with_distortions(branches: Sequence[Branch]) -> tuple[Branch, ...]:
            return tuple(
                Branch(branch.name, tuple(next(parts) for _ in branch.distortions))
                for branch in branches
            )

        return replace(
            self,
            combiner=next(parts),
            constraint=None if self.constraint is None else next(parts),
            calibrator=None if self.calibrator is None else next(parts),
            readout=None if self.readout is None else next(parts),
            loop=None if self.loop is None else next(parts),
            schedules=tuple(next(parts) for _ in self.schedules),
            interventions=tuple(next(parts) for _ in self.interventions),
            state_interventions=tuple(next(parts) for _ in self.state_interventions),
            branches=with_distortions(self.branches),
            prompt_branches=with_distortions(self.prompt_branches),
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the method as plain data.

        Returns:
            Dicts, lists and plain values, with all parameters, defaults included;
            `cdkit.methods.plain_data.parse_method` reads it back.
        """
        data: dict[str, Any] = {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
        }
        data["combiner"] = describe(self.combiner)
        data["constraint"] = NO_CONSTRAINT if self.constraint is None else describe(self.constraint)
        if self.calibrator is not None:
            data["calibrator"] = describe(self.calibrator)
        if self.readout is not None:
            data["readout"] = describe(self.readout)
        if self.loop is not None:
            data["loop"] = describe(self.loop)
        if self.schedules:
            data["schedules"] = [describe(part) for part in self.schedules]
        if self.interventions:
            data["interventions"] = [describe(part) for part in self.interventions]
        if self.state_interventions:
            data["state_interventions"] = [describe(part) for part in self.state_interventions]
        data["branches"] = _described(self.branches)
        if self.prompt_branches:
            data["prompt_branches"] = _described(self.prompt_branches)
        return data


def _described(branches: Sequence[Branch]) -> list[dict[str, Any]]:
    return [
        {"name": branch.name, "distortions": [describe(part) for part in branch.distortions]}
        for branch in branches
    ]

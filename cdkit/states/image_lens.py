"""The prompts' image tokens read out: their states, and what a part keeps of their logits."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.branches.layout import Layout
from cdkit.errors import CdkitError
from cdkit.interfaces.image_readout import ImageLogits, ImageReadout
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.methods.part_kinds import kind_of
from cdkit.methods.part_results import said_of


@dataclass(frozen=True, eq=False)
class ImageStates:
    """The states of the image tokens of some rows, after some layer."""

    states: Float[Tensor, "rows image hidden"]
    """Filled up at the end, in rows with fewer image tokens than others."""
    valid: Bool[Tensor, "rows image"]

    @classmethod
    def at(cls, states: Float[Tensor, "rows tokens hidden"], layout: Layout) -> "ImageStates":
        """Of the first rows of a layout, whose whole prompts these states are."""
        rows = slice(0, states.shape[0])
        columns, valid = layout.columns[rows].to(states.device), layout.valid[rows]
        index = columns[..., None].expand(-1, -1, states.shape[-1])
        return cls(states.gather(1, index), valid.to(states.device))

    def every(self, step: int) -> "ImageStates":
        """Every `step`-th row."""
        return self if step == 1 else ImageStates(self.states[::step], self.valid[::step])


@dataclass(frozen=True, eq=False)
class KeptOfImages:
    """What a part keeps of the image tokens' logits."""

    values: Mapping[str, Float[Tensor, "rows image ..."]]
    """On padding 0."""
    valid: Bool[Tensor, "rows image"]

    def repeated(self, times: int) -> "KeptOfImages":
        """Each row `times` times."""
        if times == 1:
            return self
        return KeptOfImages(
            {name: x.repeat_interleave(times, dim=0) for name, x in self.values.items()},
            self.valid.repeat_interleave(times, dim=0),
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> "KeptOfImages":
        """Copies of some rows."""
        return KeptOfImages(
            {name: x[rows.to(x.device)] for name, x in self.values.items()},
            self.valid[rows.to(self.valid.device)],
        )


def read_images(
    adapter: ModelAdapter,
    model: nn.Module,
    part: ImageReadout | StateIntervention,
    seen: ImageStates,
) -> KeptOfImages:
    """Let a part reduce the logits of each row's image tokens.

    Args:
        adapter: The model's adapter; it makes logits of states.
        model: The model.
        part: The part.
        seen: The image tokens' states after the layer that the part chose.

    Raises:
        CdkitError: Where the model's states cannot be read out, or the part gives something else
            than a tensor with an entry for each image token.
    """
    norm = part.norm if isinstance(part, ImageReadout) else True
    read_out = functools.partial(_read_out, adapter, model, kind_of(part), norm)
    each: list[Mapping[str, Tensor]] = []
    for states, valid in zip(seen.states, seen.valid, strict=True):
        own = states[valid]
        each.append(_checked(part, part.read_image(ImageLogits(own, read_out)), len(own)))
        if each[-1].keys() != each[0].keys():
            raise CdkitError(
                f"read_image of {kind_of(part)} kept {', '.join(each[-1])} of one prompt and "
                f"{', '.join(each[0])} of another; it must keep the same names of every prompt"
            )
        for name, kept in each[-1].items():
            first = each[0][name]
            if (kept.shape[1:], kept.dtype) != (first.shape[1:], first.dtype):
                raise CdkitError(
                    f"read_image of {kind_of(part)} kept {name} as {said_of(first)} of one prompt "
                    f"and {said_of(kept)} of another; behind the tokens, the shapes must be alike"
                )
    return KeptOfImages(
        {name: stacked([own[name] for own in each]) for name in each[0]}, seen.valid
    )


def _checked(part: ImageReadout | StateIntervention, made: Any, count: int) -> Mapping[str, Tensor]:
    """What `read_image` returned of a prompt with so many image tokens, if it is sound."""
    if not isinstance(made, Mapping):
        raise CdkitError(
            f"read_image of {kind_of(part)} returned {type(made).__name__}, and must return a "
            "mapping of names to tensors"
        )
    for name, value in made.items():
        if not isinstance(value, Tensor):
            raise CdkitError(
                f"{kind_of(part)} made {name} a {type(value).__name__}; it must be a tensor whose "
                "first axis is the image tokens"
            )
        if value.shape[:1] != (count,):
            raise CdkitError(
                f"{kind_of(part)} made {name} of shape {tuple(value.shape)} out of {count} "
                "image tokens; its first axis must be these tokens"
            )
    return made


def _read_out(
    adapter: ModelAdapter, model: Any, kind: str, norm: bool, states: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens vocab"]:
    try:
        return adapter.logits(model, states, norm=norm)
    except (AttributeError, LookupError, TypeError, CdkitError) as error:  # no such path; no others
        own = "" if isinstance(error, CdkitError) else f"{type(error).__name__}: "
        raise CdkitError(
            f"{kind} reads image tokens out through the final norm and the output head, which does "
            f"not work on {type(model).__name__} ({own}{error}); use a method that changes the "
            "inputs or the attention, such as vcd or cmac"
        ) from error


def stacked(values: list[Tensor]) -> Tensor:
    """Rows of unequal length, filled up with 0 at the end."""
    longest = max(map(len, values))
    stacked = values[0].new_zeros(len(values), longest, *values[0].shape[1:])
    for row, own in zip(stacked, values, strict=True):
        row[: len(own)] = own
    return stacked

"""What state interventions keep of a batch's prompts for the whole answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.errors import CdkitError
from cdkit.interfaces.state_intervention import PromptStates
from cdkit.methods.method import kind_of
from cdkit.states.attached_states import AttachedStates, Place
from cdkit.states.token_kinds import by_head

Prepared = Sequence[Mapping[str, Float[Tensor, "samples _layers ..."]]]
"""For each state intervention what its `prepare` gave; empty where it reads no prompt states."""


@dataclass(frozen=True, eq=False)
class AnswerStates:
    """For the rows of some branches."""

    prepared: Sequence[Mapping[int, Mapping[str, Float[Tensor, "rows ..."]]]]
    """For each state intervention: layer -> its entries, for the rows of one branch: those of every
    branch are alike."""
    features: Float[Tensor, "rows image hidden"] | None
    """The embeddings of the image tokens, of the rows of all of the branches; None where nothing
    reads them."""
    image_valid: Bool[Tensor, "rows image"] | None

    @classmethod
    def of(
        cls,
        states: AttachedStates,
        prepared: Prepared,
        embeds: Float[Tensor, "rows tokens hidden"],
        layout: Layout,
        *,
        expand: int,
    ) -> "AnswerStates":
        """For the rows of `embeds`, which begin with prompts of this layout.

        `expand` is how many rows of a branch belong to each sample.
        """
        each = [
            {
                layer: {
                    name: values[:, row].repeat_interleave(expand, dim=0)
                    for name, values in own.items()
                }
                for row, layer in enumerate(part.layers)
            }
            for part, own in zip(states.parts, prepared, strict=True)
        ]
        if not states.reading("image_features"):
            return cls(each, None, None)
        columns = layout.columns[..., None].expand(-1, -1, embeds.shape[-1])
        features = embeds.gather(1, columns).masked_fill(~layout.valid[..., None], 0)
        return cls(each, features, layout.valid)

    def prepared_of(self, part: int, layer: int, device: torch.device) -> Mapping[str, Tensor]:
        """A part's entries for one layer."""
        own = self.prepared[part].get(layer, {})
        if all(values.device == device for values in own.values()):
            return own
        return {name: values.to(device) for name, values in own.items()}

    def of_branches(self, rows: slice) -> "AnswerStates":
        """For some of the branches, whose rows these are."""
        if self.features is None or rows == slice(0, self.features.shape[0]):
            return self
        assert self.image_valid is not None
        return replace(self, features=self.features[rows], image_valid=self.image_valid[rows])

    def select(
        self, rows: Int[Tensor, " chosen"], every: Int[Tensor, " all_chosen"]
    ) -> "AnswerStates":
        """For copies of some rows: of the original branch, and of all branches."""

        def chosen(x: Tensor | None, which: Tensor) -> Tensor | None:
            return None if x is None else x[which.to(x.device)]

        return AnswerStates(
            [
                {
                    layer: {name: x[rows.to(x.device)] for name, x in own.items()}
                    for layer, own in part.items()
                }
                for part in self.prepared
            ],
            chosen(self.features, every),
            chosen(self.image_valid, every),
        )


def prompt_places(states: AttachedStates) -> frozenset[Place]:
    """Where the states of the prompts' last tokens are read."""
    return frozenset(
        (own.part.prompt_site, layer)
        for own in states.reading("prompt_states")
        for layer in own.layers
    )


def prepare(
    states: AttachedStates, seen: Mapping[str, Mapping[Place, Float[Tensor, "samples width"]]]
) -> Prepared:
    """What the interventions make of the prompts' states, of each branch and place.

    Raises:
        CdkitError: Where one gives another shape than it may.
    """
    made: list[Mapping[str, Tensor]] = []
    for own in states.parts:
        part = own.part
        if "prompt_states" not in part.reads:
            made.append({})
            continue
        found: dict[str, Tensor] = {}
        for name in part.prompt_branches:
            places = [seen[name][part.prompt_site, layer] for layer in own.layers]
            whole = torch.stack([x.to(places[0].device) for x in places], dim=1)
            if part.prompt_site == "heads":
                whole = by_head(whole, states.heads)
            found[name] = whole
        prepared = part.prepare(PromptStates(found, own.layers, states.depth))
        samples = len(next(iter(found.values())))
        for name, values in prepared.items():
            if values.shape[:2] != (samples, len(own.layers)):
                raise CdkitError(
                    f"{kind_of(part)} prepared {name} of shape {tuple(values.shape)}; its first "
                    f"axes must be {samples} samples and {len(own.layers)} layers"
                )
        made.append(prepared)
    return made

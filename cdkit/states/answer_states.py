"""What state interventions keep of a batch's prompts for the whole answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.errors import CdkitError
from cdkit.interfaces.state_intervention import PromptStates
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.part_kinds import kind_of
from cdkit.methods.part_results import result_error, said_of, unwritten
from cdkit.states.attached_states import ActiveIntervention, AttachedStates, Place
from cdkit.states.image_lens import ImageStates, KeptOfImages, read_images
from cdkit.states.token_kinds import by_head


@dataclass(frozen=True, eq=False)
class Prepared:
    """What state interventions made of a batch of prompts, before these go in."""

    states: Sequence[Mapping[str, Float[Tensor, "samples _layers ..."]]]
    """For each state intervention what its `prepare` gave; empty where it reads no prompt states.
    """
    images: Sequence[KeptOfImages | None]
    """For each what its `read_image` gave, a row for each sample; None where it reads none."""


@dataclass(frozen=True, eq=False)
class PromptShown:
    """What the prompt of one branch showed."""

    last: Mapping[Place, Float[Tensor, "samples width"]]
    """The states of the last token."""
    images: Mapping[int, ImageStates]
    """After how many layers -> the states of the image tokens, a row for each sample."""


@dataclass(frozen=True, eq=False)
class AnswerStates:
    """For the rows of some branches."""

    prepared: Sequence[Mapping[int, Mapping[str, Float[Tensor, "rows ..."]]]]
    """For each state intervention: layer -> its entries, for the rows of one branch: those of every
    branch are alike."""
    images: Sequence[KeptOfImages | None]
    """For each what it keeps of the image tokens' logits, likewise; None where it reads none."""
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
            for part, own in zip(states.parts, prepared.states, strict=True)
        ]
        images = [None if own is None else own.repeated(expand) for own in prepared.images]
        if not states.reading("image_features"):
            return cls(each, images, None, None)
        columns = layout.columns[..., None].expand(-1, -1, embeds.shape[-1])
        features = embeds.gather(1, columns).masked_fill(~layout.valid[..., None], 0)
        return cls(each, images, features, layout.valid)

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
            [None if own is None else own.select(rows) for own in self.images],
            chosen(self.features, every),
            chosen(self.image_valid, every),
        )


def prepare(attached: AttachedMethod, seen: Mapping[str, PromptShown]) -> Prepared:
    """What the interventions make of the prompts.

    Args:
        attached: The method on its model.
        seen: What the prompts of each branch showed; empty where nothing reads it.

    Raises:
        CdkitError: Where one gives another shape than it may.
    """
    states = attached.states
    assert states is not None
    made, images = list[Mapping[str, Tensor]](), list[KeptOfImages | None]()
    for own in states.parts:
        part = own.part
        made.append(_prepared(own, states, seen) if "prompt_states" in part.reads else {})
        kept = None
        if "image_readout" in part.reads:
            shown = seen[ORIGINAL].images[part.image_layer(states.depth)]
            kept = read_images(attached.adapter, attached.model, part, shown)
        images.append(kept)
    return Prepared(made, images)


def _prepared(
    own: ActiveIntervention, states: AttachedStates, seen: Mapping[str, PromptShown]
) -> Mapping[str, Tensor]:
    """What one makes of the last tokens' states."""
    part, found = own.part, dict[str, Tensor]()
    for name in part.prompt_branches:
        places = [seen[name].last[part.prompt_site, layer] for layer in own.layers]
        whole = torch.stack([x.to(places[0].device) for x in places], dim=1)
        if part.prompt_site == "heads":
            whole = by_head(whole, states.heads)
        found[name] = whole
    with unwritten(part, "prepare", *found.values()):
        prepared: object = part.prepare(PromptStates(found, own.layers, states.depth))
    samples = len(next(iter(found.values())))
    if not isinstance(prepared, Mapping):
        must = "a mapping of names to tensors"
        raise result_error(part, "prepare", said_of(prepared), must, "check_state_intervention")
    for name, values in prepared.items():
        if not isinstance(values, Tensor):
            must = f"a tensor for {name}"
            raise result_error(part, "prepare", said_of(values), must, "check_state_intervention")
        if values.shape[:2] != (samples, len(own.layers)):
            raise CdkitError(
                f"{kind_of(part)} prepared {name} of shape {tuple(values.shape)}; its first axes "
                f"must be {samples} samples and {len(own.layers)} layers"
            )
    return prepared

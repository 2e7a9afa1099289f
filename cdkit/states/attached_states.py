"""The state interventions of a method on one model: decided when the method is attached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from cdkit.errors import CdkitError
from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.state_intervention import Site, StateIntervention, StateReading
from cdkit.methods.branch import ORIGINAL, Branch
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of
from cdkit.methods.part_results import result_error, said_of
from cdkit.states.sites import acting_layers, heads_of, model_facts, site_module

Place = tuple[Site, int]
"""A site, and the number of its decoder layer."""


@dataclass(frozen=True, eq=False)
class ActiveIntervention:
    """A state intervention that has something to do, and the layers in which it acts."""

    part: StateIntervention
    index: int
    """Its place among these."""
    layers: tuple[int, ...]
    constants: Mapping[str, Tensor]
    """As `StateIntervention.constants` gave them: (layers, ...) each."""
    placed: dict[Any, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    """(layer, device, type) -> that layer's constants there, made once."""

    def constants_of(self, layer: int, like: Tensor) -> Mapping[str, Tensor]:
        """A layer's constants, on the device and in the type of `like`."""
        if not self.constants:
            return self.constants
        place = layer, like.device, like.dtype
        if place not in self.placed:
            row = self.layers.index(layer)
            self.placed[place] = {
                name: own[row].to(like.device, like.dtype if own.is_floating_point() else own.dtype)
                for name, own in self.constants.items()
            }
        return self.placed[place]


@dataclass(frozen=True, eq=False)
class AttachedStates:
    """All state interventions of a method on a model, in their order."""

    parts: tuple[ActiveIntervention, ...]
    depth: int
    heads: int
    edited: Mapping[Place, nn.Module]
    """The module of each place whose states are changed or read."""
    entered: Mapping[int, nn.Module]
    """After how many layers states are read -> the layer that gets them; the last layer, which
    gives them, after all."""
    prompt_branches: tuple[Branch, ...]
    """The branches that run for the prompt alone."""

    def reading(self, what: StateReading) -> tuple[ActiveIntervention, ...]:
        """The interventions that declare this in their `reads`."""
        return tuple(own for own in self.parts if what in own.part.reads)

    @property
    def keeps_prefix(self) -> bool:
        """Whether none of them changes anything before the last token of a prompt."""
        return all(own.part.keeps_prefix for own in self.parts)

    @cached_property
    def logit_layers(self) -> frozenset[int]:
        """The layers before which the predicting token's logits are read out."""
        return frozenset(n for own in self.reading("layer_logits") for n in own.layers)

    @cached_property
    def prompt_places(self) -> frozenset["Place"]:
        """Where the states of the prompts' last tokens are read."""
        return frozenset(
            (own.part.prompt_site, layer)
            for own in self.reading("prompt_states")
            for layer in own.layers
        )

    @cached_property
    def image_layers(self) -> frozenset[int]:
        """After how many layers the prompts' image tokens are read out."""
        return frozenset(own.part.image_layer(self.depth) for own in self.reading("image_readout"))

    @property
    def reads_prompts(self) -> bool:
        """Whether the prompts run once more, before they go in, so that states can be read."""
        return bool(self.reading("prompt_states") or self.reading("image_readout"))

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The branches whose prompts' states are read, without the original one."""
        named = (name for own in self.reading("prompt_states") for name in own.part.prompt_branches)
        return tuple(dict.fromkeys(name for name in named if name != ORIGINAL))

    def attention_readers(self, layer: int) -> frozenset[str]:
        """The branches whose attention to the image is read in a decoder layer."""
        found = [own for own in self.reading("image_attention") if layer in own.layers]
        return frozenset(name for own in found for name in own.part.branches)

    def table(self, branches: Sequence[str]) -> dict[Place, tuple["SiteEdit", ...]]:
        """What is done at each place for branches that run together."""
        table: dict[Place, tuple[SiteEdit, ...]] = {}
        for own in self.parts:
            acting = tuple(name for name in branches if name in own.part.branches)
            for layer in own.layers if acting else ():
                place = own.part.site, layer
                table[place] = (*table.get(place, ()), SiteEdit(own, acting))
        return table


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """What one intervention does at one place."""

    own: ActiveIntervention
    branches: tuple[str, ...]
    """In which it acts, of those that run together."""


def attach_states(method: Method, adapter: ModelAdapter, model: nn.Module) -> AttachedStates | None:
    """The state interventions of a method on a model; None where none has anything to do.

    Raises:
        CdkitError: Where the model lacks what one of them needs, or its constants do not fit.
    """
    parts: list[ActiveIntervention] = []
    layers = adapter.layers(model)
    for part in method.live_state_interventions:
        kind, wanted = kind_of(part), layers_within(part.layers, len(layers))
        acting = acting_layers(adapter, model, part, wanted, kind)
        constants = part.constants(model_facts(adapter, model, acting))
        if not isinstance(constants, Mapping):
            must = "a mapping of names to tensors"
            raise result_error(
                part, "constants", said_of(constants), must, "check_state_intervention"
            )
        for name, values in constants.items():
            if not isinstance(values, Tensor):
                must = f"a tensor for {name}"
                raise result_error(
                    part, "constants", said_of(values), must, "check_state_intervention"
                )
            if values.ndim == 0 or len(values) != len(acting):
                raise CdkitError(
                    f"{kind} gives {name} of shape {tuple(values.shape)}; its first axis must be "
                    f"the {len(acting)} layers in which it acts"
                )
        parts.append(ActiveIntervention(part, len(parts), acting, constants))
    if not parts:
        return None
    edited: dict[Place, nn.Module] = {}
    entered: dict[int, nn.Module] = {}
    for own in parts:
        sites: list[Site] = [own.part.site]
        if "prompt_states" in own.part.reads:
            sites.append(own.part.prompt_site)
        for number in own.layers:
            for site in sites:
                module = site_module(adapter, layers[number], site)
                assert module is not None
                edited[site, number] = module
            if "layer_logits" in own.part.reads:
                entered[number] = layers[number]
        if "image_readout" in own.part.reads:
            passed = check_image_layer(own.part.image_layer(len(layers)), len(layers), own.part)
            entered[passed] = layers[min(passed, len(layers) - 1)]
    wanted_names = {name for own in parts for name in own.part.prompt_branches}
    return AttachedStates(
        parts=tuple(parts),
        depth=len(layers),
        heads=heads_of(adapter.decoder(model)),
        edited=edited,
        entered=entered,
        prompt_branches=tuple(b for b in method.prompt_branches if b.name in wanted_names),
    )


def check_image_layer(
    passed: object, count: int, part: object, *, what: str = "image tokens"
) -> int:
    """Raise where a part reads logits out after a layer that there is not.

    Args:
        passed: After how many layers.
        count: How many there are.
        part: The part.
        what: What it reads out.
    """
    if not isinstance(passed, int) or isinstance(passed, bool) or not 0 <= passed <= count:
        raise CdkitError(
            f"{kind_of(part)} reads {what} out after {passed} layers, but the decoder has "
            f"{count}; give it a number from 0 to {count}"
        )
    return passed

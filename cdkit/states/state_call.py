"""One call of the decoder, as the hooks at its sites find it: what they change, and with what."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.errors import CdkitError
from cdkit.generation.hooks import Hooks
from cdkit.interfaces.state_intervention import StateSegment
from cdkit.methods.part_kinds import kind_of
from cdkit.methods.part_results import check_float, check_memory, unwritten, wrong_result
from cdkit.states.answer_states import AnswerStates, PromptShown
from cdkit.states.attached_states import AttachedStates, Place, SiteEdit
from cdkit.states.image_lens import ImageStates
from cdkit.states.token_kinds import TokenKinds, at_columns, by_head


@dataclass(frozen=True, eq=False)
class NotedAttention:
    """A layer's attention to the image, of each row's token that predicts the next one."""

    logits: Float[Tensor, "rows heads image"]
    weights: Float[Tensor, "rows heads image"]
    valid: Bool[Tensor, "rows image"]


@runtime_checkable
class SiteCall(Protocol):
    """What the hooks at the sites of a model call while its decoder runs."""

    def enter(self, layer: int, states: Float[Tensor, "rows tokens hidden"]) -> None:
        """See the input of a layer, or, with the number of layers, the output of the last one."""

    def edit(
        self,
        place: Place,
        states: Float[Tensor, "rows tokens width"],
        given: Float[Tensor, "rows tokens hidden"],
    ) -> Float[Tensor, "rows tokens width"]:
        """Return the states that take the place of those of a site; `given` is what the module of
        the site got."""
        ...


@dataclass(eq=False)
class CurrentSites:
    """The call under way, as all sites of a model find it; None outside of one."""

    call: SiteCall | None = None


@dataclass(frozen=True, eq=False)
class StateCall:
    """The state interventions in one call of the decoder, for branches that run together."""

    states: AttachedStates
    table: Mapping[Place, tuple[SiteEdit, ...]]
    branches: tuple[str, ...]
    """In the order of their rows, which are as many each."""
    kinds: TokenKinds
    """Of the rows of all of these branches."""
    answer: AnswerStates
    """Of these rows."""
    attention: Mapping[str, NotedAttention]
    """Branch -> its attention to the image in the latest layer: layers write to it."""
    read_out: Callable[[Float[Tensor, "rows hidden"]], Float[Tensor, "rows vocab"]]
    """Next-token logits of states between two layers."""
    layer_state: Mapping[str, dict[Hashable, Tensor]]
    """Branch -> what its layers leave to those above them."""
    memory: Callable[[str, int], dict[Hashable, Tensor]]
    """(branch, layer) -> what interventions remember there; they write to it."""
    entered: dict[int, Float[Tensor, "rows hidden"]] = field(default_factory=dict)
    """Layer -> the last token's state before it."""
    on_devices: dict[torch.device, TokenKinds] = field(default_factory=dict)
    """`kinds` on other devices."""

    def enter(self, layer: int, states: Float[Tensor, "rows tokens hidden"]) -> None:
        if layer in self.states.logit_layers:
            self.entered[layer] = self._kinds(states.device).last(states)

    def edit(
        self,
        place: Place,
        states: Float[Tensor, "rows tokens width"],
        given: Float[Tensor, "rows tokens hidden"],
    ) -> Float[Tensor, "rows tokens width"]:
        for one in self.table.get(place, ()):
            if one.own.part.rows != "generated" or self.kinds.any_generated:
                states = self._edited(one, place, states, given)
        return states

    def _edited(self, one: SiteEdit, place: Place, states: Tensor, given: Tensor) -> Tensor:
        site, layer = place
        kinds = self._kinds(states.device)
        if states.ndim != 3 or states.shape[:2] != kinds.token_mask.shape:
            raise CdkitError(
                f"{kind_of(one.own.part)} changes the site {site!r}, but layer {layer} gives "
                f"{tuple(states.shape)} there, not (rows, tokens, width); use a method that "
                "changes the inputs or the attention, such as vcd or cmac"
            )
        shaped = by_head(states, self.states.heads) if site == "heads" else states
        each, blocks = states.shape[0] // len(self.branches), list[Tensor]()
        for index, name in enumerate(self.branches):
            rows = slice(index * each, (index + 1) * each)
            own = shaped[rows] if len(self.branches) > 1 else shaped
            if name in one.branches:
                own = self._changed(one, name, layer, rows, own, given[rows], kinds)
            blocks.append(own)
        new = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return new.flatten(2) if site == "heads" else new

    def _changed(
        self,
        one: SiteEdit,
        branch: str,
        layer: int,
        rows: slice,
        states: Float[Tensor, "rows tokens *hidden"],
        given: Float[Tensor, "rows tokens _"],
        kinds: TokenKinds,
    ) -> Float[Tensor, "rows tokens *hidden"]:
        part, device, answer = one.own.part, states.device, self.answer
        more: dict[str, Any] = {}
        if "image_features" in part.reads and answer.features is not None:
            more["image_features"] = answer.features[rows].to(device)
            assert answer.image_valid is not None
            more["image_valid"] = answer.image_valid[rows].to(device)
        kept = answer.images[one.own.index]
        if kept is not None:
            more["image_readout"] = {name: x.to(device) for name, x in kept.values.items()}
            more["readout_valid"] = kept.valid.to(device)
        if "image_attention" in part.reads:
            seen = self.attention[branch]
            more["image_logits"], more["image_weights"] = seen.logits, seen.weights
            more["image_valid"] = seen.valid
        if "module_input" in part.reads:
            more["module_input"] = given
        if "layer_logits" in part.reads:
            logits = self.read_out(self.entered[layer][rows]).to(device)
            more["layer_logits"] = logits if logits.dtype.itemsize >= 4 else logits.float()
        if part.remembers:
            more["memory"] = self.memory(branch, layer)
        segment = StateSegment(
            states=states,
            token_mask=kinds.token_mask[rows],
            is_image=kinds.is_image[rows],
            predicts_next=kinds.predicts_next[rows],
            generated=kinds.generated[rows],
            layer=layer,
            depth=self.states.depth,
            constants=one.own.constants_of(layer, states),
            prepared=answer.prepared_of(one.own.index, layer, device),
            layer_state=self.layer_state[branch],
            **more,
        )
        given_states = states, segment.module_input, segment.image_features
        with unwritten(part, "intervene", *given_states, *segment.constants.values()):
            new: object = part.intervene(segment)
        if not isinstance(new, Tensor) or new.shape != states.shape:
            raise wrong_result(part, "intervene", new, states.shape, "check_state_intervention")
        check_float(part, "intervene", new, "check_state_intervention")
        check_memory(part, segment.memory, states.shape[0])
        new = new if new.dtype == states.dtype else new.to(states.dtype)
        chosen = kinds.changed(part.rows)
        if chosen is None:
            return new
        return torch.where(
            chosen[rows].view(*states.shape[:2], *[1] * (states.ndim - 2)), new, states
        )

    def _kinds(self, device: torch.device) -> TokenKinds:
        if device == self.kinds.token_mask.device:
            return self.kinds
        if device not in self.on_devices:
            self.on_devices[device] = self.kinds.to(device)
        return self.on_devices[device]


@dataclass(frozen=True, eq=False)
class PromptRecorder:
    """Keeps states of prompts, and changes nothing."""

    layout: Layout
    """Of the prompts of all rows."""
    image_rows: int
    """Of how many first rows the image tokens are kept: those of the original branch."""
    states: AttachedStates
    layer_states: Callable[[Tensor], Tensor]
    """As `ModelAdapter.layer_states`."""
    kept: dict[Place, Float[Tensor, "rows width"]] = field(default_factory=dict)
    """The states of each row's last token."""
    images: dict[int, ImageStates] = field(default_factory=dict)
    """After how many layers -> the states of the image tokens."""

    def enter(self, layer: int, states: Float[Tensor, "rows tokens hidden"]) -> None:
        if self.image_rows and layer in self.states.image_layers:
            own = self.layer_states(states)[: self.image_rows]
            self.images[layer] = ImageStates.at(own, self.layout)

    def edit(
        self,
        place: Place,
        states: Float[Tensor, "rows tokens width"],
        given: Float[Tensor, "rows tokens hidden"],
    ) -> Float[Tensor, "rows tokens width"]:
        if place in self.states.prompt_places:
            self.kept[place] = at_columns(states, self.layout.last_token)
        return states

    def shown(self, rows: slice) -> PromptShown:
        """What one branch showed, whose rows these are."""
        last = {place: x[rows] for place, x in self.kept.items()}
        step = rows.step or 1
        return PromptShown(last, {n: own.every(step) for n, own in self.images.items()})


def hook_sites(hooks: Hooks, states: AttachedStates, current: CurrentSites) -> None:
    """Put a hook at each site, for the time that the method is attached."""
    for layer, module in states.entered.items():
        if layer < states.depth:
            hooks.before(module, _Entered(layer, current), first=True)
        else:
            hooks.after(module, _Entered(layer, current))
    for place, module in states.edited.items():
        if place[0] == "heads":
            hooks.change_input(module, _Edited(place, current))
        else:
            hooks.change_output(module, _Edited(place, current))


@dataclass(frozen=True, eq=False)
class _Entered:
    layer: int
    current: CurrentSites

    def __call__(self, given: Any) -> None:
        if self.current.call is not None:
            states = given[0] if isinstance(given, tuple) else given
            self.current.call.enter(self.layer, states)


@dataclass(frozen=True, eq=False)
class _Edited:
    place: Place
    current: CurrentSites

    def __call__(self, states: Tensor, given: Tensor) -> Tensor:
        call = self.current.call
        return states if call is None else call.edit(self.place, states, given)

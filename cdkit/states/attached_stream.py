"""The stream readout of a method on one model: decided when the method is attached."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdkit.errors import CdkitError
from cdkit.generation.hooks import Hooks
from cdkit.interfaces.model_adapter import ModelAdapter, attentions_of
from cdkit.interfaces.stream_readout import StreamReadout, Sublayers
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of
from cdkit.probing.observed_layers import UNFIT, hands_heads_on
from cdkit.states.sites import site_module


@dataclass(frozen=True, eq=False)
class AttachedStream:
    """A stream readout, and the modules that its stream passes."""

    part: StreamReadout
    layer: int
    """The layer whose attention is weighed anew, counted among those that have attention."""
    projection: nn.Module
    """The output projection of that attention."""
    sublayers: "ModelSublayers"

    def states(
        self,
        heads: Float[Tensor, "rows heads value_dim"],
        states: Mapping[str, Float[Tensor, "rows hidden"]],
    ) -> Float[Tensor, "rows hidden"]:
        """The states that the final norm and the output head get.

        Args:
            heads: The values of that layer, weighed by `StreamReadout.reweigh`.
            states: The states of the original branch that `StreamReadout.layers` names.
        """
        return self.part.stream(self.projection(heads.flatten(1)), states, self.sublayers)


@dataclass(frozen=True, eq=False)
class ModelSublayers(Sublayers):
    """The sublayers of a model, found by calling a layer whose attention is taken out.

    So nothing need be known of a family's norms and multipliers.
    """

    layers: Sequence[nn.Module]
    attentions: Mapping[int, nn.Module]
    """By the number of their layer."""
    depth: int

    def attention_norm(
        self, layer: int, states: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        try:
            self._call(layer, states, _show)
        except _Shown as shown:
            return shown.states[:, 0]
        raise CdkitError(f"layer {layer} did not call its attention")

    def feed_forward(
        self, layer: int, states: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        output = self._call(layer, states, _nothing)
        made: Tensor = output[0] if isinstance(output, tuple) else output
        return made[:, 0]

    def _call(self, layer: int, states: Float[Tensor, "rows hidden"], instead: Any) -> Any:
        """Call a layer, with `instead` in the place of its attention's forward."""
        if layer not in self.attentions:
            raise CdkitError(f"layer {layer} has no attention")
        module, hooks = self.layers[layer], Hooks()
        hooks.set(self.attentions[layer], "forward", instead)
        try:
            return module(states[:, None], **dict.fromkeys(_required(type(module).forward)))
        finally:
            hooks.undo()


@functools.cache
def _required(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What a layer must be called with besides the states: its attention alone reads it."""
    named = list(inspect.signature(forward).parameters.values())[2:]  # after self, states
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return tuple(own.name for own in named if own.default is own.empty and own.kind in kinds)


class _Shown(Exception):
    """Ends a call of a layer at its attention."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _given(args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else named["hidden_states"]
    return states


def _show(*args: Any, **named: Any) -> NoReturn:
    raise _Shown(_given(args, named))


def _nothing(*args: Any, **named: Any) -> tuple[Tensor, None]:
    return torch.zeros_like(_given(args, named)), None


def attach_stream(
    method: Method, adapter: ModelAdapter, model: nn.Module, *, forced: bool
) -> AttachedStream | None:
    """The stream readout of a method on a model; None where it has none, or nothing uses it.

    Raises:
        CdkitError: Where the model's layers are not made of the sublayers that a stream passes.
    """
    part = method.readout
    if not isinstance(part, StreamReadout) or not (forced or method.combiner.uses(part.name)):
        return None
    decoder: Any = adapter.decoder(model)
    layers, attentions = adapter.layers(model), attentions_of(adapter, model)
    kind, here = kind_of(part), type(decoder).__name__
    instead = "use a method that changes the inputs or the attention, such as vcd or cmac"
    if not attentions:
        raise CdkitError(f"no layer of {here} has attention, which {kind} reads; {instead}")
    index = part.attention_layer(len(attentions))
    number = list(attentions)[index]
    projection = site_module(adapter, layers[number], "heads")
    if projection is None or not hands_heads_on(
        decoder, list(attentions.values()), index, projection, adapter.kwargs_of_one_token(model)
    ):
        raise CdkitError(
            f"{kind} weighs the heads of layer {number} anew, but {here} does not hand them to an "
            f"output projection as they are (some gate them, or norm them); {instead}"
        )
    made = AttachedStream(part, index, projection, ModelSublayers(layers, attentions, len(layers)))
    _try_out(made, decoder, kind, instead)
    return made


def _try_out(made: AttachedStream, decoder: Any, kind: str, instead: str) -> None:
    """Send one token through, before any prompt is there."""
    words = decoder.get_input_embeddings().weight
    states = words.new_ones(1, decoder.config.hidden_size)
    depth, why = made.sublayers.depth, ""
    try:
        with torch.no_grad():
            given = {name: states for name in made.part.layers(depth)}
            out = made.part.stream(states, given, made.sublayers)
        if out.shape != states.shape:
            why = f"they make {tuple(out.shape)} of {tuple(states.shape)}"
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        own = "" if isinstance(error, CdkitError) else f"{type(error).__name__}: "
        why = f"{own}{error}"
    if why:
        raise CdkitError(
            f"{kind} sends a token through sublayers of {type(decoder).__name__}, whose layers "
            f"cannot be called with a token's state alone ({why}); {instead}"
        )

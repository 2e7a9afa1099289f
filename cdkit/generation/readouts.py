"""Logits of the original branch's inner layers, and of a stream that leaves it in one of them."""

import functools
from collections.abc import Collection, Mapping

from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.hooks import Hooks
from cdkit.interfaces.stream_readout import StreamReadout
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import Method


def hook_readout(hooks: Hooks, engine: AttachedEngine, *, forced: bool) -> None:
    """Keep the states that a method's readout takes from between the layers, while it is attached.

    Args:
        hooks: Which put everything back.
        engine: The method on its model.
        forced: Whether states are kept also where the combiner does not use them.

    Raises:
        CdkitError: Where names clash, or the combiner names nothing that is there.
    """
    attached = engine.attached
    readout, combiner = attached.method.readout, attached.method.combiner
    if readout is None:
        return
    layers = attached.adapter.layers(attached.model)
    kept = readout.layers(len(layers))
    if isinstance(readout, StreamReadout):
        _check_names(attached.method, (readout.name,))
        kept = kept if attached.stream is not None else {}
    else:
        _check_names(attached.method, kept)
        kept = {name: own for name, own in kept.items() if forced or combiner.uses(name)}
    for name, passed in kept.items():
        keep = functools.partial(engine.keep_readout, name)
        if passed == 0:
            hooks.before(layers[0], keep)
        else:
            hooks.after(layers[passed - 1], keep)


def readout_logits(
    attached: AttachedMethod,
    states: Mapping[str, Float[Tensor, "rows hidden"]],
    heads: Float[Tensor, "rows heads value_dim"] | None,
    original: Float[Tensor, "rows vocab"],
) -> dict[str, Float[Tensor, "rows vocab"]]:
    """The logits that the combiner gets of a readout, by name.

    Args:
        attached: The method on its model.
        states: The states that the readout takes from between the layers.
        heads: What a stream readout makes of one layer's attention; None without one.
        original: The original branch's logits, in float32 or better.
    """
    readout, stream, share = attached.method.readout, attached.stream, 0.0
    if stream is not None:
        assert heads is not None
        states, share = {stream.part.name: stream.states(heads, states)}, stream.part.original_share
    norm = readout is None or readout.norm
    made = {
        name: attached.adapter.logits(attached.model, own, norm=norm).to(original)
        for name, own in states.items()
    }
    return {name: own + share * original for name, own in made.items()} if share else made


def _check_names(method: Method, layers: Collection[str]) -> None:
    """Raise where a readout's names clash with branches, or the combiner names neither."""
    branches = [branch.name for branch in method.branches]
    if clash := set(branches) & set(layers):
        raise CdkitError(
            f"branch {min(clash)!r} of {method.name} is called like a layer that is read out; "
            "give the branch another name"
        )
    for name, parameter in method.combiner.names.items():
        if name not in branches and name not in layers:
            raise CdkitError(
                f"{parameter} names {name!r}, but {method.name} has "
                f"{', '.join((*branches, *layers))}"
            )

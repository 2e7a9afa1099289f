"""Logits of the original branch's inner layers, of a stream that leaves it in one of them, and of
the prompts' image tokens."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cdkit.errors import CdkitError
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.hooks import Hooks
from cdkit.interfaces.combiner import State
from cdkit.interfaces.image_readout import ImageReadout, ImageStep
from cdkit.interfaces.readout import LayerReadout
from cdkit.interfaces.stream_readout import StreamReadout
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method
from cdkit.methods.part_results import check_float, result_error, unwritten, wrong_result
from cdkit.states.attached_states import check_image_layer
from cdkit.states.image_lens import ImageStates, read_images

VALID = "valid image tokens"
"""Where the state of a batch keeps which entries of an image readout are image tokens."""


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
    kept = _chosen_layers(readout, len(layers))
    if isinstance(readout, ImageReadout):
        _check_names(attached.method, kept)
        if attached.image_readout is not None:
            passed = check_image_layer(readout.layer(len(layers)), len(layers), readout)
            _hook(hooks, layers, passed, engine.keep_image)
        return
    if isinstance(readout, StreamReadout):
        _check_names(attached.method, (readout.name,))
        kept = kept if attached.stream is not None else {}
    else:
        _check_names(attached.method, kept)
        kept = {name: own for name, own in kept.items() if forced or combiner.uses(name)}
    for name, passed in kept.items():
        _hook(hooks, layers, passed, functools.partial(engine.keep_readout, name))


def _chosen_layers(readout: LayerReadout, count: int) -> Mapping[str, int]:
    """Which layers a readout reads, each of which there is."""
    chosen: object = readout.layers(count)
    if not isinstance(chosen, Mapping) or not (chosen or isinstance(readout, StreamReadout)):
        must = "a mapping of names to how many layers were passed, with one at least"
        raise result_error(readout, "layers", repr(chosen), must, "check_readout")
    for name, passed in chosen.items():
        named = isinstance(name, str) and name not in ("", ORIGINAL)
        if not named:
            must = f"names that are texts other than {ORIGINAL!r}"
            raise result_error(readout, "layers", repr(name), must, "check_readout")
        check_image_layer(passed, count, readout, what=name)
    return chosen


def _hook(
    hooks: Hooks, layers: Sequence[nn.Module], passed: int, keep: Callable[[Any], None]
) -> None:
    """Show states that have passed so many layers."""
    if passed == 0:
        hooks.before(layers[0], keep)
    else:
        hooks.after(layers[passed - 1], keep)


def kept_of_images(attached: AttachedMethod, seen: ImageStates | None, before: State) -> State:
    """What an image readout keeps of the prompts, for the rows of one step.

    Args:
        attached: The method on its model; it has an image readout.
        seen: The image tokens' states, in a call that ran the prompts.
        before: What the step before had; empty at the first step.
    """
    if seen is None:
        return before
    part = attached.image_readout
    assert part is not None
    kept = read_images(attached.adapter, attached.model, part, seen)
    return {**{_kept(name): x for name, x in kept.values.items()}, VALID: kept.valid}


def image_logits(
    part: ImageReadout, kept: State, original: Float[Tensor, "rows vocab"]
) -> dict[str, Float[Tensor, "rows vocab"]]:
    """The logits that the combiner gets of an image readout.

    Args:
        part: The readout.
        kept: As `kept_of_images` gives it.
        original: The original branch's logits, in float32 or better.
    """
    values = {name: x for name, x in kept.items() if name != VALID}
    step = ImageStep(
        original,
        {name.removeprefix(_kept("")): x.to(original.device) for name, x in values.items()},
        kept[VALID].to(original.device),
    )
    with unwritten(part, "step_logits", original, *step.kept.values()):
        made: object = part.step_logits(step)
    if not isinstance(made, Tensor) or made.shape != original.shape:
        raise wrong_result(part, "step_logits", made, original.shape, "check_readout")
    check_float(part, "step_logits", made, "check_readout")
    return {part.name: made.to(original)}


def readout_logits(
    attached: AttachedMethod,
    states: Mapping[str, Float[Tensor, "rows hidden"]],
    heads: Float[Tensor, "rows heads value_dim"] | None,
    original: Float[Tensor, "rows vocab"],
) -> dict[str, Float[Tensor, "rows vocab"]]:
    """The logits that the combiner gets of a layer readout or of a stream, by name.

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


def _kept(name: str) -> str:
    return f"kept {name}"


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

"""What a state intervention promises; see `cdkit.testing`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.depth import check_depth
from cdkit.interfaces.state_intervention import (
    EditedRows,
    ModelFacts,
    PromptStates,
    Site,
    StateIntervention,
    StateReading,
    StateSegment,
)
from cdkit.probing.promises import require, require_same
from cdkit.testing.example_states import (
    ROWS,
    ExampleCall,
    example_call,
    example_model,
    example_prompts,
)
from cdkit.testing.image_readout_contract import check_read_image
from cdkit.testing.state_memory_contract import check_state_memory
from cdkit.testing.values import check_value, pure, takes

ROW_BY_ROW = (
    "reduce over the tokens or the width of one row, never over dim 0, and use the entry of each "
    "row in `prepared` and the image fields"
)
TOKEN_BY_TOKEN = (
    "compute each token's new state from that token alone, or set needs_whole_prompt = True; then "
    "leave padding out by states.token_mask"
)
LAYERS_FIRST = "return tensors whose first axis has one entry for each of model.layers"


def check_state_intervention(part: Any, *, model: ModelFacts | None = None) -> None:
    """Check the promises of a state intervention.

    Args:
        part: An instance of a subclass of `cdkit.StateIntervention`.
        model: The model that its constants belong to; None for a made-up one. One that reads
            vectors from a file needs that file's model.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(part)
    require(
        isinstance(part, StateIntervention),
        part,
        "it subclasses StateIntervention",
        todo="write class Name(cdkit.StateIntervention)",
    )
    _check_declared(part)
    model = example_model(part) if model is None else model
    constants = _constants(part, model)
    prepared = _prepared(part, example_prompts(part, model))
    images = None
    if "image_readout" in part.reads:
        images = check_read_image(part, model.hidden_size, model.vocabulary)
    call = example_call(part, model, constants, prepared, images)
    _check_states(part, call)
    check_state_memory(part, call)
    if part.switch:
        off = dataclasses.replace(part, **{part.switch: 0.0})
        require(
            off.is_identity,
            part,
            f"it is the identity where {part.switch} is 0",
            todo="leave is_identity as the interface has it, or include this case",
        )
        _check_identity(off, call)
    elif part.is_identity:
        _check_identity(part, call)


def _check_declared(part: StateIntervention) -> None:
    """Require that what it declares can be had."""
    require(
        isinstance(part.branches, tuple) and all(isinstance(b, str) for b in part.branches),
        part,
        "branches is a tuple of branch names",
        part.branches,
        todo='write branches: tuple[str, ...] = ("original",)',
    )
    choices: Sequence[tuple[str, object, Any]] = (
        ("site", getattr(part, "site", None), Site),
        ("prompt_site", part.prompt_site, Site),
        ("rows", part.rows, EditedRows),
    )
    for name, value, allowed in choices:
        require(
            value in get_args(allowed),
            part,
            f"{name} is one of {', '.join(get_args(allowed))}",
            value,
            todo=f"write {name} = {get_args(allowed)[0]!r} in the class, for example",
        )
    known = frozenset(get_args(StateReading))
    require(
        isinstance(part.reads, frozenset) and part.reads <= known,
        part,
        f"reads holds some of {', '.join(sorted(known))}",
        part.reads,
        todo='write reads: ClassVar = frozenset({"image_features"}), for example',
    )
    try:
        check_depth("layers", part.layers)
    except CdkitError as error:
        raise AssertionError(
            f"{part!r}: layers is a range of depth. Got: {error}. What to do: call "
            'cdkit.check_depth("layers", self.layers) in __post_init__'
        ) from error
    reads = "prompt_states" in part.reads
    require(
        reads == bool(part.prompt_branches),
        part,
        "it names branches in prompt_branches where it declares prompt_states, and only there",
        part.prompt_branches,
        todo='declare reads = frozenset({"prompt_states"}) and return the names of the branches',
    )
    for count in (1, 8, 32):
        passed = part.image_layer(count)
        require(
            isinstance(passed, int) and 0 <= passed <= count,
            part,
            f"image tokens are read out after 0 to {count} layers",
            passed,
            todo="count layers from 0 (the embeddings) to the depth in image_layer",
        )
    fields = {field.name for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    require(
        not part.switch or part.switch in fields,
        part,
        "switch names one of its fields",
        part.switch,
        todo="write the name of the field that switches it off when it is 0",
    )


def _constants(part: StateIntervention, model: ModelFacts) -> Mapping[str, Tensor]:
    constants: Mapping[str, Tensor] = pure(part, part.constants, model)
    for name, values in constants.items():
        fits = values.ndim > 0 and len(values) == len(model.layers)
        shape, promise = tuple(values.shape), f"constant {name} has an entry for each layer"
        require(fits, part, promise, shape, todo=LAYERS_FIRST)
        whole = bool(values.isfinite().all())
        require(whole, part, f"constant {name} is finite", todo="refuse such a file by CdkitError")
    return constants


def _prepared(part: StateIntervention, prompt: PromptStates) -> Mapping[str, Tensor]:
    if "prompt_states" not in part.reads:
        return {}
    prepared: Mapping[str, Tensor] = pure(part, part.prepare, prompt)
    for name, values in prepared.items():
        wanted = ROWS, len(prompt.layers)
        require(
            values.shape[:2] == wanted,
            part,
            f"prepare gives {name} for each sample and layer, {wanted}",
            tuple(values.shape),
            todo="keep the first two axes of prompt.states: samples and layers",
        )
        for row in range(ROWS):
            own = {branch: x[row : row + 1] for branch, x in prompt.states.items()}
            alone = part.prepare(dataclasses.replace(prompt, states=own))[name]
            promise = "what it prepares of a sample depends on no other sample"
            require_same(alone, values[row : row + 1], part, promise, todo=ROW_BY_ROW)
    return prepared


def _changed(part: StateIntervention, call: ExampleCall) -> list[Tensor]:
    """The new states of each layer, with those that the engine leaves alone as they were."""
    return [
        torch.where(_wide(_chosen(part, segment), new), new, segment.states)
        for new, segment in zip(call.changed(part), call.segments, strict=True)
    ]


def _chosen(part: StateIntervention, segment: StateSegment) -> Bool[Tensor, "rows tokens"]:
    match part.rows:
        case "text":
            return segment.token_mask & ~segment.is_image
        case "predicting":
            return segment.predicts_next
        case "generated":
            return segment.generated
        case _:
            return segment.token_mask


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.ndim - 2))


def _check_states(part: StateIntervention, call: ExampleCall) -> None:
    """Require a pure function of each row, and of each token, that keeps shape and type."""
    with takes(part, "states of the shapes that it declares", todo="read states.states.shape"):
        first = pure(part, lambda layers: ExampleCall(layers).changed(part), call.segments)
    for new, segment in zip(first, call.segments, strict=True):
        require(
            new.shape == segment.states.shape and new.dtype == segment.states.dtype,
            part,
            "new states have the shape and type of the old ones",
            (tuple(new.shape), new.dtype),
            todo="return .to(states.states.dtype) of the same shape",
        )
        there = new[_chosen(part, segment)]
        todo = "guard divisions: states, features and what is prepared may be 0"
        require(bool(there.isfinite().all()), part, "new states are finite", todo=todo)
    whole = _changed(part, call)
    for row in range(ROWS):
        promise = "a row's new states depend on no other row"
        for alone, own in zip(_changed(part, call.rows([row])), whole, strict=True):
            require_same(alone, own[row : row + 1], part, promise, todo=ROW_BY_ROW)
    padding = ~call.segments[0].token_mask
    for name in ("states", "module_input"):
        other = _changed(part, call.replaced(name, padding, 7.0))
        for new, own in zip(other, whole, strict=True):
            promise = "nothing depends on padding"
            require_same(new[~padding], own[~padding], part, promise, todo=TOKEN_BY_TOKEN)
    no_token = call.segments[0].readout_valid
    if no_token is not None:
        other = _changed(part, call.replaced("image_readout", ~no_token, 7.0))
        for new, own in zip(other, whole, strict=True):
            promise = "nothing depends on the padding of image_readout"
            todo = "leave out what states.readout_valid says is no image token"
            require_same(new, own, part, promise, todo=todo)
    if not part.needs_whole_prompt:
        for tokens in ([0, 1, 2, 3], [6], [5, 8]):
            some = _changed(part, call.tokens(tokens))
            for new, own in zip(some, whole, strict=True):
                promise = "a token's new state depends on no other token"
                require_same(new, own[:, tokens], part, promise, todo=TOKEN_BY_TOKEN)
    half = call.to(torch.bfloat16)
    with takes(part, "states in bfloat16", todo="compute in float32 and return .to(the type)"):
        for new in half.changed(part):
            promise = "new states have the type of the old ones, bfloat16 too"
            todo = "return .to(states.states.dtype)"
            require(new.dtype == torch.bfloat16, part, promise, new.dtype, todo=todo)


def _check_identity(part: StateIntervention, call: ExampleCall) -> None:
    """Require that it changes nothing but by rounding."""
    for new, segment in zip(_changed(part, call), call.segments, strict=True):
        require_same(
            new,
            segment.states,
            part,
            "is_identity says whether nothing changes",
            todo="let these parameters leave the states alone, or let is_identity be False",
        )

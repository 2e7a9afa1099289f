"""Watch what the layers of a decoder hand to their attention: how keys rotate, what a cache keeps.

Nothing of the model is changed meanwhile, so another thread may run it: copies of its modules are
called that share all weights.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from cdkit.branches.recurrent_states import keeps_keys
from cdkit.errors import CdkitError, failure
from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.model_adapter import input_device
from cdkit.probing.promises import precision

UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What is raised by a decoder that takes other arguments, or has other parts. CdkitError is one of
them; what a user's own hook raises goes through."""
KEY = "cdkit_probe"
"""The name in Hugging Face's attention registries."""
SEEN = "_cdkit_seen"
"""The attribute of a copied attention module with the keys that it handed to its attention."""
MADE = "_cdkit_made"
"""The attribute with the outputs of the heads that its attention gave back."""
START = 3
STEPS = (0, 2, 7, 301)
"""By how many positions the tokens that are compared lie behind `START`."""
FAR = 4096
"""By how many positions one axis moves where it is asked which frequencies follow it: the slowest
ones change little."""


@dataclass(frozen=True, eq=False)
class ObservedLayers:
    """What the layers of a decoder do with positions, and with a cache."""

    rotary: tuple[Rotary | None, ...] | None
    """How each layer with attention rotates its keys, None for one whose keys do not depend on the
    position; None instead where a layer rotates them in a way that was not found out."""
    caches_keys: bool
    """Whether a cache holds the keys that attention gets. Layers with latent attention (MLA) keep
    something smaller and make keys of it at each step."""
    key_sources: tuple[int, ...] = ()
    """For each layer with attention the one whose keys it uses, counted among these layers: itself,
    or an earlier one. Empty where it is not known."""
    head_dims: frozenset[int] = frozenset()
    """The dimensions of a key of one head, in all of these layers; empty where they are not
    known."""
    failure: str = ""
    """What went wrong, where the decoder does not run like this."""


_FOUND: WeakKeyDictionary[nn.Module, ObservedLayers] = WeakKeyDictionary()
"""Decoder -> what was observed; once, not at each attach."""
_HAND_ON: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
"""Decoder -> the layers of which `hands_heads_on` holds."""


def observe_layers(
    decoder: Any, attentions: Sequence[nn.Module], token_kwargs: Mapping[str, Tensor] | None = None
) -> ObservedLayers:
    """Find out how each layer of a decoder rotates its keys, and whether its cache keeps them.

    The decoder runs one token at several positions. The token attends to itself alone, so the rows
    differ by their rotation only, in every layer. A layer's rotary embedding is the one that makes
    the key at one position of the key at another one: of all frequencies that the decoder's rotary
    modules have, in both pairings, at the first dimensions of a head or at its last ones.

    Args:
        decoder: The text decoder.
        attentions: The attention module of each of its layers that has one.
        token_kwargs: What the decoder gets of a token besides its embedding, (1, 1, ...) each.

    Returns:
        What was observed. Where the decoder does not run like this, nothing is known but the
        `failure`: `rotary` is None and `caches_keys` is False, which is the safe assumption.
    """
    if decoder not in _FOUND:
        try:
            with torch.no_grad():
                _FOUND[decoder] = _observe(decoder, attentions, token_kwargs or {})
        except torch.OutOfMemoryError:
            raise
        except UNFIT as error:
            # not kept: what a user has hooked into the model may be taken out again
            return ObservedLayers(None, caches_keys=False, failure=failure(error))
    return _FOUND[decoder]


def _observe(
    decoder: Any, attentions: Sequence[nn.Module], token_kwargs: Mapping[str, Tensor]
) -> ObservedLayers:
    axes = axes_of(decoder.config)
    # beyond the longest sequence some embeddings change their frequencies
    longest = getattr(decoder.config, "max_position_embeddings", None) or FAR + START + 1
    last = longest - START - 1
    steps = torch.tensor(STEPS).clamp(max=last)
    moves = steps[:, None].expand(-1, axes)
    if axes > 1:
        # each row moves its axes differently, and then one axis at a time
        apart = torch.stack([steps.roll(axis) for axis in range(axes)], dim=1)
        moves = torch.cat((moves, apart, min(FAR, last) * torch.eye(axes, dtype=steps.dtype)))
    keys, cached = keys_at(decoder, attentions, START + moves, token_kwargs)
    sources = _sources(keys, cached)
    kept = all(
        cached[number] is not None and keys[number].equal(cached[number]) for number in set(sources)
    )
    dims = frozenset(key.shape[-1] for key in keys)
    found: list[Rotary | None] = []
    for key in keys:
        far = float(key.abs().max())
        if torch.allclose(key[1:], key[:1].expand_as(key[1:]), rtol=0, atol=1e-2 * far):
            found.append(None)
            continue
        rotary = _fitting(key, moves.to(key.device), decoder, found)
        if rotary is None:
            return ObservedLayers(None, caches_keys=kept, key_sources=sources, head_dims=dims)
        found.append(rotary)
    return ObservedLayers(tuple(found), caches_keys=kept, key_sources=sources, head_dims=dims)


def _sources(keys: Sequence[Tensor], cached: Sequence[Tensor | None]) -> tuple[int, ...]:
    """For each layer the one whose keys it uses: itself where its cache keeps some."""
    found = list[int]()
    for number, (key, kept) in enumerate(zip(keys, cached, strict=True)):
        below = [keys[source] if kept is None else None for source in found]
        alike = [n for n, x in enumerate(below) if x is not None and _same(x, key)]
        if kept is None and not alike:
            raise CdkitError(f"layer {number} uses keys that no layer below it has made")
        found.append(found[alike[-1]] if alike else number)
    return tuple(found)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.to(other).equal(other)


def keys_at(
    decoder: Any,
    attentions: Sequence[nn.Module],
    positions: Shaped[Tensor, "rows axes"],
    token_kwargs: Mapping[str, Tensor],
) -> tuple[list[Float[Tensor, "rows kv_heads 1 head_dim"]], list[Any]]:
    """The keys that each layer hands to its attention, for one token at several positions.

    Args:
        decoder: The text decoder.
        attentions: The attention module of each of its layers that has one.
        positions: Where the token stands, a row each; one axis but for multimodal RoPE.
        token_kwargs: As `observe_layers` takes it.

    Returns:
        The keys of each of these layers, and what the cache of each keeps as keys: None for a layer
        that uses the keys of another one.

    Raises:
        CdkitError: Where a layer does not call its attention once.
    """
    shell, inner = _shell(decoder, attentions)
    cache = _run_shell(shell, decoder, positions, token_kwargs)
    keys: list[list[Tensor]] = [vars(module)[SEEN] for module in inner]
    if wrong := [len(own) for own in keys if len(own) != 1]:
        raise CdkitError(
            f"a layer of {type(decoder).__name__} calls its attention {wrong[0]} times"
        )
    layers: list[Any] = [layer for layer in cache.layers if keeps_keys(layer)]
    if len(layers) != len(inner):  # some layers have no keys, but use those of others
        every: list[Any] = cache.layers
        numbers: list[Any] = [module.layer_idx for module in inner]
        layers = [every[number] for number in numbers]
    return [own[0] for own in keys], [x.keys if keeps_keys(x) else None for x in layers]


def hands_heads_on(
    decoder: Any,
    attentions: Sequence[nn.Module],
    index: int,
    projection: nn.Module,
    token_kwargs: Mapping[str, Tensor] | None = None,
) -> bool:
    """Whether an output projection gets the outputs of its layer's heads as they are.

    Args:
        decoder: The text decoder.
        attentions: The attention module of each of its layers that has one.
        index: The layer, counted among these.
        projection: The output projection of that layer.
        token_kwargs: As `observe_layers` takes it.

    Returns:
        False where they are gated or normed on the way, and where the decoder does not run one
        token like this, so that it is not known.
    """
    known = _HAND_ON.setdefault(decoder, set())
    if index in known:
        return True
    shell, inner = _shell(decoder, attentions)
    copied, got = inner[index], list[Tensor]()
    seen = _Watched(projection, got)
    owners = [name for name, own in copied._modules.items() if own is projection]
    copied._modules |= dict.fromkeys(owners, seen)
    positions = torch.full((1, axes_of(decoder.config)), START)
    try:
        with torch.no_grad():
            _run_shell(shell, decoder, positions, token_kwargs or {})
    except torch.OutOfMemoryError:
        raise
    except UNFIT:
        return False
    made: Tensor | None = vars(copied).get(MADE)
    if made is None or len(got) != 1 or got[0].numel() != made.numel():
        return False
    if got[0].flatten().to(made).equal(made.flatten()):
        known.add(index)
    return index in known


class _Watched(nn.Module):
    """A module that keeps what it is given."""

    def __init__(self, inner: nn.Module, got: list[Tensor]) -> None:
        super().__init__()
        self.inner, self.got = inner, got

    def forward(self, x: Tensor) -> Any:
        self.got.append(x)
        return self.inner(x)


def _run_shell(
    shell: Any,
    decoder: Any,
    positions: Shaped[Tensor, "rows axes"],
    token_kwargs: Mapping[str, Tensor],
) -> Any:
    """Run one token at these positions through a copy of the decoder; returns its cache."""
    device = input_device(decoder)
    random = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 1, decoder.config.hidden_size, generator=random)
    cache = DynamicCache(config=decoder.config)
    positions = positions.to(device)
    type(decoder).forward(  # of the class: the instance's may be wrapped by an attachment
        shell,
        inputs_embeds=embeds.expand(len(positions), 1, -1).to(device, decoder.dtype),
        position_ids=positions if positions.shape[1] == 1 else positions.T[..., None],
        use_cache=True,
        **{CACHE: cache},
        **{n: x.expand(len(positions), *x.shape[1:]) for n, x in token_kwargs.items()},
    )
    return cache


def axes_of(config: Any) -> int:
    """How many axes the positions of a decoder have: 1 for most.

    Multimodal RoPE divides the frequencies among axes; its config says how many each one has.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(own for own in parameters.values() if isinstance(own, dict))]
    sections = [
        value for own in kinds for name, value in own.items() if name.endswith("_section") and value
    ]
    return len(sections[0]) if sections else 1


# ---- copies of modules ---------------------------------------------------------------------------


def _shell(decoder: Any, attentions: Sequence[nn.Module]) -> tuple[Any, list[nn.Module]]:
    """Copies of the decoder and its layers whose attention is recorded, and those of `attentions`.

    They share every weight, and every module in which no attention is.
    """
    config = copy.copy(decoder.config)
    config._attn_implementation_internal = KEY
    wanted, copies = {id(module) for module in attentions}, dict[int, nn.Module]()

    def copied(module: nn.Module) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]
        children = {name: copied(child) for name, child in module._modules.items() if child}
        inside = id(module) in wanted
        changed = any(children[name] is not module._modules[name] for name in children)
        if not (inside or changed or module is decoder):
            return module
        own = copy.copy(module)
        own._modules = {**module._modules, **children}
        vars(own).pop("forward", None)  # what an attachment, or accelerate, puts around it
        if hook := vars(module).get("_hf_hook"):
            vars(own)["forward"] = _hooked(module, own, hook)
        if inside:
            vars(own)[SEEN] = []
        if inside or module is decoder:
            vars(own)["config"] = config
        copies[id(module)] = own
        return own

    shell: Any = copied(decoder)
    return shell, [copies[id(module)] for module in attentions]


def _hooked(module: nn.Module, own: nn.Module, hook: Any) -> Callable[..., Any]:
    """The copy's forward within accelerate's hook, which moves inputs and offloaded weights."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        return hook.post_forward(module, type(own).forward(own, *args, **kwargs))

    return forward


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """In the place of the attention: a token that attends to itself alone gets its own value."""
    vars(module)[SEEN].append(key)
    out = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    out = out.transpose(1, 2).contiguous()
    vars(module)[MADE] = out
    return out, None


AttentionInterface.register(KEY, _record)
AttentionMaskInterface.register(KEY, sdpa_mask)


# ---- the rotary embedding that fits --------------------------------------------------------------


def _fitting(
    keys: Float[Tensor, "rows kv_heads 1 head_dim"],
    moves: Int[Tensor, "rows axes"],
    decoder: Any,
    earlier: Sequence[Rotary | None],
) -> Rotary | None:
    """The rotary embedding under which every row is the first one, moved; None where none is."""
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    rows = len(moves) - (moves.shape[1] if moves.shape[1] > 1 else 0)
    by = (moves - moves[:1])[:rows, None].to(wide)
    if by.shape[-1] == 1:
        by = by[..., 0]
    allowed = max(precision(keys.dtype), 2e-3) * (1 + float(wide.abs().max()))

    def error(rotary: Rotary) -> float:
        moved = rotate(wide[:1].expand(rows, -1, -1, -1), by, rotary)
        return float((moved - wide[:rows]).abs().max())

    known = [one for one in earlier if one is not None]
    for rotary in known[-1:]:  # most layers rotate as the one below
        if error(rotary) <= allowed / 10:
            return rotary
    candidates = _candidates(wide, moves, decoder)
    best = min(candidates, key=error, default=None)
    return best if best is not None and error(best) <= allowed else None


def _candidates(
    keys: Float[Tensor, "rows kv_heads 1 head_dim"], moves: Int[Tensor, "rows axes"], decoder: Any
) -> list[Rotary]:
    """Every way to rotate heads of this size by frequencies that the decoder has."""
    width, axes = keys.shape[-1], moves.shape[1]
    found = []
    for module in decoder.modules():
        for name, frequencies in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or name.startswith("original"):
                continue
            half = frequencies.shape[-1]
            if frequencies.ndim != 1 or frequencies.is_meta or 2 * half > width:
                continue
            own = frequencies.clone()  # a longer sequence may change those of longrope in place
            for first in sorted({0, width - 2 * half}):
                for interleaved in (False, True):
                    rotary = Rotary(own, interleaved=interleaved, first=first)
                    if axes > 1:
                        rotary = replace(rotary, axes=_axes(keys, rotary, axes))
                    found.append(rotary)
    return found


def _axes(
    keys: Float[Tensor, "rows kv_heads 1 head_dim"], rotary: Rotary, axes: int
) -> Int[Tensor, " half"]:
    """For each frequency the axis along which moving changes its pair of dimensions most.

    The last rows of `keys` are moved along one axis each.
    """
    change = (keys[-axes:] - keys[:1]).abs().amax(dim=(1, 2))
    first, half = rotary.first, len(rotary.inverse_frequencies)
    change = change[:, first : first + 2 * half]
    if rotary.interleaved:
        pairs = change.view(axes, half, 2).amax(dim=-1)
    else:
        pairs = change.view(axes, 2, half).amax(dim=1)
    return pairs.argmax(dim=0)

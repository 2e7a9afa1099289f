"""The stock model with plain torch hooks: the reference of methods that change hidden states.

No method of cdkit runs here: each sample runs alone, its prompt in one call, then token by token
with a cache, as the authors' code does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cdkit.interfaces.cache_names import CACHE

from .tiny import IMAGE, Sample

Change = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, states, what the module got) -> the states that take their place."""


@contextmanager
def changed(model: Any, *, mlp: Change | None = None, **sites: Change) -> Iterator[None]:
    """While it lasts, `mlp` changes feed-forward outputs; `layer` those of layers; `heads` what
    output projections get."""
    sites |= {"mlp": mlp} if mlp is not None else {}
    handles = []
    for number, layer in enumerate(model.model.language_model.layers):
        for site, change in sites.items():

            def after(
                module: nn.Module,
                given: Any,
                output: Any,
                number: int = number,
                change: Change = change,
            ) -> Any:
                return change(number, output, given[0])

            def before(
                module: nn.Module, given: Any, number: int = number, change: Change = change
            ) -> Any:
                return (change(number, given[0], given[0]),)

            match site:
                case "heads":
                    handles.append(layer.self_attn.o_proj.register_forward_pre_hook(before))
                case "mlp":
                    handles.append(layer.mlp.register_forward_hook(after))
                case _:
                    handles.append(layer.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def last_states(model: Any, one: Sample, *, image: bool = True) -> Tensor:
    """(layers, hidden): each layer's output in the prompt's last token."""
    kept: list[Tensor] = []

    def keep(layer: int, states: Tensor, given: Tensor) -> Tensor:
        kept.append(states[0, -1].clone())
        return states

    with changed(model, layer=keep):
        _call(model, one, list(one.ids) if image else [i for i in one.ids if i != IMAGE], image)
    return torch.stack(kept)


@torch.no_grad()
def last_heads(model: Any, one: Sample, *, image: bool = True) -> dict[int, Tensor]:
    """Layer -> (heads * head_dim): the head outputs of the prompt's last token."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int, states: Tensor, given: Tensor) -> Tensor:
        kept[layer] = states[0, -1].clone()
        return states

    with changed(model, heads=keep):
        _call(model, one, list(one.ids) if image else [i for i in one.ids if i != IMAGE], image)
    return kept


def _call(model: Any, one: Sample, ids: list[int], image: bool, **more: Any) -> Any:
    pixels = {"pixel_values": one.pixels} if image else {}
    return model(input_ids=torch.tensor([ids]), **pixels, **more)


@torch.no_grad()
def steps(
    model: Any, one: Sample, generated: Sequence[int], *, read_out: bool = False
) -> dict[str, Tensor]:
    """(steps, vocab) under "original": the logits that predict each generated token. With
    `read_out` also "layer_j", those of the state after j layers, without the final norm."""
    logits: dict[str, list[Tensor]] = {}
    states: list[Tensor] = []

    def keep(layer: int, own: Tensor, given: Tensor) -> Tensor:
        states.append(own[:, -1])
        return own

    cache = None
    with changed(model, layer=keep):
        for step, token in enumerate([None, *generated[:-1]]):
            states.clear()
            if token is None:
                output = _call(model, one, list(one.ids), True, use_cache=True)
            else:
                at = torch.tensor([[len(one.ids) + step - 1]])
                output = model(
                    input_ids=torch.tensor([[token]]),
                    **{CACHE: cache},
                    position_ids=at,
                    use_cache=True,
                )
            cache = getattr(output, CACHE)
            logits.setdefault("original", []).append(output.logits[0, -1])
            for number, own in enumerate(states if read_out else ()):
                logits.setdefault(f"layer_{number + 1}", []).append(model.lm_head(own)[0])
    return {name: torch.stack(own) for name, own in logits.items()}


def together(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The samples' results below each other."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

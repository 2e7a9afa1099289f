"""The states between the reference's layers, for methods that read them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .decoders import Decoder
from .reference import Layer, Result, Rules
from .tiny import Sample, sequence


@torch.no_grad()
def inner_states(model: Any, samples: Sequence[Sample], tokens: Tensor) -> Tensor:
    """(layers + 1, rows, steps, hidden): the states of the rows that predict `tokens`.

    The first are the embeddings; each sample runs alone.
    """
    decoder, rows = Decoder.of(model), []
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        at = sequence(model, one.ids, generated[:-1], one.pixels)
        states = [at.embeds.double()]
        for layer in range(decoder.layers):
            part = Layer(decoder, layer, states[-1], at, Rules())
            states.append(part.output(Result(torch.empty(0)), None))
        rows.append(torch.stack(states)[:, -len(generated) :])
    return torch.stack(rows, dim=1)


def read_out(model: Any, states: Tensor, *, norm: bool) -> Tensor:
    """The output head's logits of them, after the final norm where asked."""
    decoder = Decoder.of(model)
    if norm:
        states = decoder.normed(states, "norm")
    return states @ decoder.state["lm_head.weight"].T

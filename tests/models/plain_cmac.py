"""CMAC recomputed for one prompt, around a model's own decoder: the reference of many families."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import cdkit

from .grid_tiny import IMAGE, VIDEO
from .modes import generated


def decoder_of(model: Any) -> Any:
    """The module with the layers; one that encodes images itself is the whole inner model."""
    return getattr(model.model, "language_model", model.model)


@dataclass(eq=False)
class Plain:
    """CMAC written out: one sequence, no cache, all attention weights, the model's own rotary
    embedding asked for the calibrated positions. Nothing here comes from cdkit."""

    model: Any
    prompt: int
    gamma: float
    index: list[int]
    """For each token the number of its image, -1 for text, -2 for a mark inside of an image."""
    positions: Tensor
    """(3, 1, tokens)."""
    distorted: bool = False
    axes: int = 3
    """Of the positions that the rotary embedding is asked for; 1 for most families."""
    raw: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Queries and keys of the layer under way, before they are turned."""

    @property
    def module(self) -> Any:
        return sys.modules[type(decoder_of(self.model).layers[-1].self_attn).__module__]

    def __post_init__(self) -> None:
        self.turn = self.module.apply_rotary_pos_emb

    def noted(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.raw.append((query, key))
        return self.turn(query, key, *args, **kwargs)

    @staticmethod
    def embedded(model: Any, ids: Tensor) -> Tensor:
        """What the decoder is given of text."""
        embeds: Tensor = model.get_input_embeddings()(ids)
        return embeds

    def calibrated(self) -> Tensor:
        """Token by token: how far each stands behind the one before its image, axis by axis."""
        places: list[Tensor] = []
        here, start, longest = 0.0, 0.0, 0.0
        for token, number in enumerate(self.index):
            own = self.positions[:, 0, token].double()
            if number < 0 and token and self.index[token - 1] >= 0:
                # text may follow a video before the time of its last frame
                here += min(longest, float(own.max()) - start) / self.gamma
            if number < 0:
                here += 1
                places.append(torch.full((3,), here, dtype=torch.float64))
                continue
            if token == 0 or self.index[token - 1] != number:
                start, longest = float(own.min()), 0.0
            gone = own - start + 1
            longest = max(longest, float(gone.max()))
            places.append(here + gone / self.gamma)
        return torch.stack(places, dim=1)[:, None]

    def moved(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries and keys at the calibrated positions."""
        plain_query, plain_key = self.raw.pop()
        rotary = decoder_of(self.model).rotary_emb
        places = self.calibrated() if self.axes > 1 else self.calibrated()[0]
        turned = self.turn(plain_query, plain_key, *rotary(value, position_ids=places))
        return [  # some families split off the part of a head that does not turn
            torch.cat((own, whole[..., own.shape[-1] :]), dim=-1)
            for own, whole in zip(turned, (query, key), strict=True)
        ]

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        tokens = len(self.index)
        text, image = (torch.tensor(self.index) == -1, torch.tensor(self.index) >= 0)
        causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        cells = causal & text[:, None] & image[None]
        there = self.moved(module, query, key, value)
        ordinary, moved = (
            kwargs["scaling"] * q[0] @ _each_head(k, q).transpose(-1, -2)
            for q, k in ((query, key), there)
        )
        logits = torch.where(cells, moved, ordinary)
        weights = logits.masked_fill(~causal, -math.inf).softmax(-1)
        values = _each_head(value, query)
        out = weights @ values
        if self.distorted:
            cut = weights * self._above_mean(logits, cells)
            out = (weights - cut) @ values + cut @ self._means(values)
        return out.transpose(0, 1)[None], None

    def _above_mean(self, logits: Tensor, cells: Tensor) -> Tensor:
        """The prompt's cells share a threshold; each generated row has its own."""
        above = torch.zeros_like(logits, dtype=torch.bool)
        tokens = len(self.index)
        for rows in [range(self.prompt), *([row] for row in range(self.prompt, tokens))]:
            group = torch.zeros_like(cells)
            group[list(rows)] = cells[list(rows)]
            above |= group & (logits > logits[:, group].mean())
        return above

    def _means(self, values: Tensor) -> Tensor:
        means, index = torch.zeros_like(values), torch.tensor(self.index)
        for number in range(max(self.index) + 1):
            means[:, index == number] = values[:, index == number].mean(dim=1, keepdim=True)
        return means


def _each_head(x: Tensor, query: Tensor) -> Tensor:
    return x[0].repeat_interleave(query.shape[1] // x.shape[1], dim=0)


@torch.no_grad()
def plain_logits(
    model: Any,
    given: dict[str, Tensor],
    generated: list[int],
    *,
    gamma: float,
    distorted: bool,
    mark: int | None = None,
    kind: type[Plain] = Plain,
) -> Tensor:
    """(steps, vocab): what predicts each generated token, and the one after them.

    `mark` is the token that stands between the rows of an image; then there is one image.
    """
    decoder = decoder_of(model)
    asked: dict[str, Any] = {}
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: asked.update(kwargs), with_kwargs=True
    )
    entered: list[Any] = []
    first = decoder.layers[0].register_forward_pre_hook(lambda _, args: entered.extend(args[:1]))
    model(**given)
    handle.remove()
    first.remove()
    prompt, more = given["input_ids"].shape[1], len(generated)
    embeds, positions = asked.get("inputs_embeds"), asked["position_ids"]
    if embeds is None:  # the decoder makes them of ids and pixels
        embeds = entered[0]
    if positions is None:
        positions = torch.arange(embeds.shape[1])[None]
    axes = 3 if positions.ndim == 3 else 1
    positions = positions[-3:] if axes > 1 else positions[None].expand(3, -1, -1)
    new = kind.embedded(model, torch.tensor([generated], dtype=torch.long))
    ahead = positions[..., -1:] + torch.arange(1, more + 1)
    ids = given["input_ids"][0].tolist() + generated
    index, number = [], -1
    for place, token in enumerate(ids):
        here = token in (IMAGE, VIDEO) and place < prompt
        number += here and (place == 0 or ids[place - 1] != token)
        index.append(number if here else -1)
    if mark is not None:
        last = len(index) - 1 - index[::-1].index(number)
        index = [min(own, 0) for own in index]
        for place in range(last):
            index[place] = -2 if ids[place] == mark else index[place]
    positions = torch.cat((positions, ahead), dim=-1)
    own = kind(model, prompt, gamma, index, positions, distorted, axes)
    levels: dict[str, Any] = {}
    if asked.get("deepstack_visual_embeds") is not None:
        where = torch.nn.functional.pad(asked["visual_pos_masks"], (0, more))
        levels = {
            "visual_pos_masks": where,
            "deepstack_visual_embeds": asked["deepstack_visual_embeds"],
        }
    if asked.get("deepstack_features") is not None:
        levels["deepstack_features"] = asked["deepstack_features"]
        levels["vision_mask"] = torch.nn.functional.pad(asked["vision_mask"], (0, 0, 0, more))
    if asked.get("per_layer_inputs") is not None:
        of_new = decoder.get_per_layer_inputs(torch.tensor([generated], dtype=torch.long))
        levels["per_layer_inputs"] = torch.cat((asked["per_layer_inputs"], of_new), dim=1)
    for types in (name for name in asked if name.endswith("token_type_ids")):
        if asked[types] is not None:  # the answer is text
            levels[types] = torch.nn.functional.pad(asked[types], (0, more))
    with _as_attention(model, own):
        states = decoder(
            inputs_embeds=torch.cat((embeds, new), dim=1),
            position_ids=positions if axes > 1 else positions[0],
            use_cache=False,
            **levels,
        ).last_hidden_state
    logits: Tensor = model.lm_head(states[0, prompt - 1 :])
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return logits / getattr(decoder.config, "logits_scaling", 1)


def check_cmac(
    model: Any,
    inputs_of: Callable[..., dict[str, Tensor]],
    prompts: Sequence[Any],
    *,
    optimize: Any,
    close: dict[str, Any],
    seen: float = 1e-2,
    others: Sequence[Callable[[dict[str, Tensor]], dict[str, Tensor]]] = (),
    **how: Any,
) -> None:
    """Both branches of CMAC on a batch of these prompts are what `plain_logits` gives for each.

    The comparison would see, by more than `seen`, positions left alone and a branch left
    undistorted, and the prompts that `others` make.
    """
    given, gamma = inputs_of(*prompts), 2.5
    method = cdkit.load("cmac", gamma=gamma)
    with cdkit.attach(model, method, trace=("logits",), optimize=optimize) as attached:
        tokens = generated(model, given).sequences[:, given["input_ids"].shape[1] :]
    found = attached.trace.steps
    for row, prompt in enumerate(prompts):
        before, alone = tokens[row, :-1].tolist(), inputs_of(prompt)
        for branch, distorted in zip(found[0].logits, (False, True), strict=True):
            asked: dict[str, Any] = {"gamma": gamma, "distorted": distorted, **how}
            own = torch.stack([step.logits[branch][row] for step in found])
            torch.testing.assert_close(own, plain_logits(model, alone, before, **asked), **close)
            changed: tuple[dict[str, Any], ...] = ({"gamma": 1.0}, {"distorted": not distorted})
            wrong = [
                *(plain_logits(model, alone, before, **asked | own) for own in changed),
                *(plain_logits(model, other(alone), before, **asked) for other in others),
            ]
            assert not any(torch.allclose(own, one, rtol=0, atol=seen) for one in wrong)


@contextmanager
def _as_attention(model: Any, plain: Plain) -> Iterator[None]:
    decoder = decoder_of(model)
    before = decoder.config._attn_implementation
    AttentionInterface.register("written_out", plain.attention)
    AttentionMaskInterface.register("written_out", sdpa_mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain.module, "apply_rotary_pos_emb", plain.noted)
        decoder.config._attn_implementation = "written_out"
        try:
            yield
        finally:
            decoder.config._attn_implementation = before

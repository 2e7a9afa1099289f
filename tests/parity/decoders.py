"""The parts of a decoder, written out from the equations, and what differs between families."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

TEXT = -1
"""In the numbers of a sequence's images: text. A mark inside of image n, as between its tiles, has
`mark_of(n)`: no row of the segment and no value of the image, but to positions a text token."""


def mark_of(number: int) -> int:
    return -2 - number


def numbered(ids: Sequence[int], image_token: int, counts: Sequence[int]) -> tuple[int, ...]:
    """What each token is; the images have so many image tokens each."""
    places = [place for place, token in enumerate(ids) if token == image_token]
    assert len(places) == sum(counts)
    numbers, done = [TEXT] * len(ids), 0
    for number, count in enumerate(counts):
        own = places[done : done + count]
        done += count
        for place in range(own[0], own[-1] + 1):
            numbers[place] = number if ids[place] == image_token else mark_of(number)
    return tuple(numbers)


@dataclass(frozen=True)
class Turn:
    """A layer's rotary embedding: the base, what linear scaling divides positions by, its share."""

    theta: float
    stretch: float = 1.0
    share: float = 1.0
    """Of the frequencies, the first ones, those that turn; the others are 0."""


@dataclass(frozen=True)
class Form:
    """What differs between decoders; the defaults are Llama's and Mistral's.

    No sliding window: what looks at the image is refused where one would cut.
    """

    norm: Literal["rms", "one_plus_rms", "centred"] = "rms"
    block: Literal["serial", "parallel", "sandwich"] = "serial"
    """`parallel`: attention and MLP read the same normed states. `sandwich`: what both give is
    normed before it is added."""
    gate: Literal["silu", "tanh_gelu"] = "silu"
    pairs: Literal["halves", "neighbours"] = "halves"
    """Which dimensions RoPE turns together."""
    turns: tuple[Turn | None, ...] = ()
    """A layer each, None where positions do not count; empty: the decoder's theta in all."""
    biases: bool = False
    """Of queries, keys and values."""
    head_norms: bool = False
    """Queries and keys are normed, head by head, before they turn."""
    scaling: float | None = None
    """Of the attention logits; None: one over the root of a head's dimensions."""
    value_norms: bool = False
    """Values are normed, head by head, without weights."""
    cap: float | None = None
    """Attention logits are `cap tanh(logits / cap)`."""
    final_cap: float | None = None
    """The same of the next token's logits."""
    key_sources: tuple[int, ...] = ()
    """A layer each: the one whose keys and values it uses; empty: its own."""
    layer_inputs: int = 0
    """How many numbers each layer gets of each token besides its state, made from its id."""
    soft_tokens: tuple[int, ...] = ()
    """Ids that count as the padding's there."""
    l2_norms: tuple[bool, ...] = ()
    """A layer each: whether queries and keys are normed, without weights, after they turn."""
    experts: tuple[bool, ...] = ()
    """A layer each: whether its MLP is a mixture: one that all tokens share, and one of several,
    of what the router's sigmoid leaves of a token."""
    block_tokens: tuple[int, ...] = ()
    """Ids of what sees all of its kind in a prompt."""
    sees_ahead: Literal["nowhere", "in images", "in prompts"] = "nowhere"
    ahead_layers: tuple[bool, ...] = ()
    """A layer each: whether it sees ahead like that; empty: all do."""


def form_of(config: Any) -> Form:
    """The form of a Hugging Face text config's decoder."""
    kinds: Any = getattr(config, "layer_types", None)
    rope = config.rope_parameters
    match config.model_type:
        case "llama" | "mistral":
            return Form()
        case "qwen2":
            return Form(biases=True)
        case "gemma":  # of PaliGemma
            return Form(norm="one_plus_rms", gate="tanh_gelu", sees_ahead="in prompts")
        case "gemma2":  # of PaliGemma 2
            return Form(
                norm="one_plus_rms",
                block="sandwich",
                gate="tanh_gelu",
                scaling=config.query_pre_attn_scalar**-0.5,
                cap=config.attn_logit_softcapping,
                final_cap=config.final_logit_softcapping,
                sees_ahead="in prompts",
            )
        case "gemma4_text" | "gemma4_unified_text":
            ahead = config.use_bidirectional_attention == "vision"
            sliding = tuple(kind == "sliding_attention" for kind in kinds)
            unified = config.model_type == "gemma4_unified_text"
            first = config.num_hidden_layers - config.num_kv_shared_layers
            shares = {
                k: Turn(own["rope_theta"], share=own.get("partial_rotary_factor", 1.0))
                for k, own in rope.items()
            }
            return Form(
                block="sandwich",
                gate="tanh_gelu",
                turns=tuple(shares[kind] for kind in kinds),
                head_norms=True,
                value_norms=True,
                scaling=1.0,
                final_cap=config.final_logit_softcapping,
                key_sources=tuple(
                    layer if layer < first else max(i for i in range(first) if kinds[i] == kind)
                    for layer, kind in enumerate(kinds)
                ),
                layer_inputs=0 if unified else config.hidden_size_per_layer_input,
                soft_tokens=(90, 91, 96),
                sees_ahead="in images" if ahead else "nowhere",
                ahead_layers=() if unified else sliding,
            )
        case "llama4_text":
            turn = Turn(rope["rope_theta"])
            layers = range(config.num_hidden_layers)
            return Form(
                pairs="neighbours",
                turns=tuple(turn if turns else None for turns in config.no_rope_layers),
                l2_norms=tuple(bool(turns) for turns in config.no_rope_layers),
                experts=tuple(n in config.moe_layers for n in layers),
            )
        case "molmo2_text":
            scaled, plain = (
                Turn(rope["rope_theta"], rope.get("factor", 1.0)),
                Turn(rope["rope_theta"]),
            )
            layers = range(config.num_hidden_layers)
            return Form(
                head_norms=True,
                turns=tuple(scaled if n in config.rope_scaling_layers else plain for n in layers),
                block_tokens=(90, 92, 93, 94, 95),
            )
        case "cohere2":
            turn = Turn(rope["rope_theta"])
            turns = tuple(turn if kind == "sliding_attention" else None for kind in kinds)
            return Form(norm="centred", block="parallel", pairs="neighbours", turns=turns)
        case "gemma3_text":
            turning = {
                k: Turn(own["rope_theta"], own.get("factor", 1.0)) for k, own in rope.items()
            }
            return Form(
                norm="one_plus_rms",
                block="sandwich",
                gate="tanh_gelu",
                turns=tuple(turning[kind] for kind in kinds),
                head_norms=True,
                scaling=config.query_pre_attn_scalar**-0.5,
                sees_ahead="in images",
            )
    raise AssertionError(f"no form of {config.model_type}")


def norm(x: Tensor, weight: Tensor, eps: float, kind: str = "rms") -> Tensor:
    if kind == "centred":
        x = x - x.mean(-1, keepdim=True)
    factor = 1 + weight if kind == "one_plus_rms" else weight
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * factor


def gated(x: Tensor, kind: str) -> Tensor:
    if kind == "silu":
        return x / (1 + torch.exp(-x))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * (1 + torch.tanh(inner)) / 2


def rope(x: Tensor, positions: Tensor, turn: Turn | None, pairs: str = "halves") -> Tensor:
    """Turn the pairs of (tokens, heads, d), the i-th by `position * theta ** (-2 i / d)`."""
    if turn is None:
        return x
    half = x.shape[-1] // 2
    places = torch.arange(half, dtype=torch.float64)
    rate = turn.theta ** (-places / half) / turn.stretch * (places < turn.share * half)
    angle = positions[:, None, None] * rate
    first, second = torch.arange(half), torch.arange(half) + half
    if pairs == "neighbours":
        first, second = 2 * torch.arange(half), 2 * torch.arange(half) + 1
    turned = torch.empty_like(x)
    a, b = x[..., first], x[..., second]
    turned[..., first] = a * angle.cos() - b * angle.sin()
    turned[..., second] = a * angle.sin() + b * angle.cos()
    return turned


def visible(
    form: Form, image: Sequence[int], prompt: int, layer: int = 0, ids: Sequence[int] = ()
) -> Tensor:
    """(rows, columns): what each token may look at."""
    tokens, numbers = torch.arange(len(image)), torch.tensor(image)
    seen = tokens[None, :] <= tokens[:, None]
    if form.ahead_layers and not form.ahead_layers[layer]:
        return seen
    if form.block_tokens:
        block = torch.tensor([token in form.block_tokens for token in ids]) & (tokens < prompt)
        return seen | (block[:, None] & block)
    if form.sees_ahead == "in images":  # its tokens see all of their own image
        seen = seen | ((numbers[:, None] == numbers[None, :]) & (numbers >= 0))
    if form.sees_ahead == "in prompts":  # the image's tokens see the question, too
        seen = seen | ((tokens[:, None] < prompt) & (tokens[None, :] < prompt))
    return seen


@dataclass(frozen=True, eq=False)
class Decoder:
    """The weights of a decoder and its output head."""

    state: Mapping[str, Tensor]
    layers: int
    heads: int
    kv_heads: int
    eps: float
    theta: float
    form: Form = Form()

    @classmethod
    def of(cls, model: Any) -> "Decoder":
        """The decoder of a LLaVA model."""
        config = model.config.text_config
        return cls(
            state={name: tensor.double() for name, tensor in model.state_dict().items()},
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            eps=config.rms_norm_eps,
            theta=config.rope_parameters["rope_theta"],
        )

    def weight(self, name: str) -> Tensor:
        return self.state[f"model.language_model.{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.weight(name).T
        biased = self.form.biases and name.endswith(("q_proj", "k_proj", "v_proj"))
        return out + self.state[f"model.language_model.{name}.bias"] if biased else out

    def normed(self, x: Tensor, name: str) -> Tensor:
        return norm(x, self.weight(name), self.eps, self.form.norm)

    def layer_inputs(self, states: Tensor, ids: Sequence[int]) -> Tensor | None:
        """(tokens, layers, numbers): what each layer gets of each token besides its state."""
        width = self.form.layer_inputs
        if not width:
            return None
        soft = torch.tensor([0 if one in self.form.soft_tokens else one for one in ids])
        of_ids = self.weight("embed_tokens_per_layer")[soft] * math.sqrt(width)
        of_states = states @ self.weight("per_layer_model_projection").T
        of_states = (of_states / math.sqrt(states.shape[-1])).view(len(ids), self.layers, width)
        normed = self.normed(of_states, "per_layer_projection_norm")
        return (normed + of_ids.view(len(ids), self.layers, width)) / math.sqrt(2)

    def turn(self, layer: int) -> Turn | None:
        return self.form.turns[layer] if self.form.turns else Turn(self.theta)

    def logits(self, state: Tensor) -> Tensor:
        logits = self.normed(state, "norm") @ self.state["lm_head.weight"].T
        cap = self.form.final_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

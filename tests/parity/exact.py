"""A stock model in float64: Hugging Face's rotary embeddings and norms are float32 in any model."""

import copy
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import cdkit

CENTRED, ONE_PLUS = ("Cohere2LayerNorm",), ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")


class Norm64(nn.Module):
    """A decoder's norm."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        # the norm of Gemma 4's values has none
        self.weight: Tensor | None = getattr(stock, "weight", None)
        self.eps: float = getattr(stock, "variance_epsilon", None) or stock.eps
        self.kind = type(stock).__name__

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps)
        if self.kind in CENTRED:
            return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, eps=self.eps)
        weight = self.weight + 1 if self.kind in ONE_PLUS else self.weight
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps=self.eps)


class Rotary64(nn.Module):
    """A decoder's rotary embedding, of one kind of layer or of several."""

    def __init__(self, stock: Any, config: Any, *, scaled: bool = True) -> None:
        super().__init__()
        self.rope_type = stock.rope_type
        self.interleaved = config.model_type == "cohere2"
        rope = config.rope_parameters
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        places = torch.arange(0, width, 2, dtype=torch.float64) / width
        for kind, own in (rope if isinstance(stock.rope_type, dict) else {"": rope}).items():
            rates = 1 / own["rope_theta"] ** places / (own.get("factor", 1.0) if scaled else 1)
            if own["rope_type"] == "proportional":
                rates = rates * (places < own["partial_rotary_factor"])
            self.register_buffer(f"{kind}_inv_freq".lstrip("_"), rates, persistent=False)

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str = ""
    ) -> tuple[Tensor, Tensor]:
        rates: Tensor = getattr(self, f"{layer_type}_inv_freq".lstrip("_"))
        angle = position_ids.double()[..., None] * rates
        if self.interleaved:
            angle = angle.repeat_interleave(2, dim=-1)
        else:
            angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


class Polar64(nn.Module):
    """The same angles as complex numbers, as Llama 4 takes them."""

    def __init__(self, rotary: Rotary64) -> None:
        super().__init__()
        self.rope_type, self.rotary = rotary.rope_type, rotary
        rates: Any = rotary.inv_freq
        self.register_buffer("inv_freq", rates, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        cos, sin = self.rotary(x, position_ids)
        half = cos.shape[-1] // 2
        return torch.complex(cos[..., :half], sin[..., :half])


def _turned_in_plane(query: Tensor, key: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:

    def turned(x: Tensor) -> Tensor:
        plane = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(plane * turn[:, :, None]).flatten(-2)

    return turned(query), turned(key)


def _routed(router: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    logits = states @ router.weight.T
    chosen = logits >= logits.topk(router.top_k, dim=1).values[:, -1:]
    return torch.sigmoid(logits) * chosen, logits


@contextmanager
def exact(stock: Any) -> Iterator[Any]:
    """A copy of the model that is float64 all through; also the function that turns its heads."""
    model = copy.deepcopy(stock)
    decoder: Any = cdkit.adapter_for(model).decoder(model)
    decoder.rotary_emb = Rotary64(decoder.rotary_emb, decoder.config)
    if hasattr(decoder, "rotary_emb_unscaled"):  # Molmo 2: of layers without scaling
        decoder.rotary_emb_unscaled = Rotary64(
            decoder.rotary_emb_unscaled, decoder.config, scaled=False
        )
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("Norm"):
                setattr(parent, name, Norm64(child))
    for module in decoder.modules():
        if hasattr(module, "embed_scale"):
            of_layers = module is getattr(decoder, "embed_tokens_per_layer", None)
            width = module.embedding_dim // (len(decoder.layers) if of_layers else 1)
            module.embed_scale = torch.tensor(width, dtype=torch.float64).sqrt()
    module = sys.modules[type(decoder).__module__]
    if decoder.config.model_type == "llama4_text":  # complex numbers, and two casts to float32
        decoder.rotary_emb = Polar64(decoder.rotary_emb)
        for part in decoder.modules():
            if type(part).__name__ == "Llama4Router":
                part.forward = functools.partial(_routed, part)
        with mock.patch.object(module, "apply_rotary_emb", _turned_in_plane):
            yield model
    elif decoder.config.model_type == "cohere2":  # its function casts to float32
        with mock.patch.object(module, "apply_rotary_pos_emb", _turned):
            yield model
    else:
        yield model


def _turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cohere's: neighbours turn together."""

    def turned(x: Tensor) -> Tensor:
        swapped = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        return x * cos[:, None] + swapped * sin[:, None]

    return turned(query), turned(key)

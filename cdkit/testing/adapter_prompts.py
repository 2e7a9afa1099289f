"""Prompts for the contract suite of model adapters: made, batched and lengthened."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.probing.stock_generate import Inputs

QUESTION = "is there a cat in the image ?"


def encoded(model: Any, adapter: ModelAdapter, processor: Any, *, images: int) -> Inputs:
    """A question about noise pictures, through the adapter's prompt and the processor."""
    random = torch.Generator().manual_seed(images)
    noise = torch.randint(256, (images, 64, 64, 3), generator=random, dtype=torch.uint8)
    pictures = [Image.fromarray(picture.numpy()) for picture in noise]
    text = adapter.prompt(QUESTION, images=images, processor=processor)
    return prepared(processor(images=[pictures], text=[text], return_tensors="pt"), model)


def prepared(inputs: Any, model: Any) -> Inputs:
    """One prompt on the model's device, its pixels in the model's precision, with a mask.

    Raises:
        CdkitError: Where `inputs` are not one prompt without padding.
    """
    found = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    if "input_ids" not in found or found["input_ids"].shape[0] != 1:
        raise CdkitError("inputs must hold input_ids of one prompt: shape (1, tokens)")
    found.setdefault("attention_mask", torch.ones_like(found["input_ids"]))
    if not bool(found["attention_mask"].all()):
        raise CdkitError("inputs must hold one prompt without padding")
    return found


def batched(*prompts: Inputs, pad: int) -> Inputs:
    """One batch of several prompts.

    Args:
        prompts: Each of one row.
        pad: The token id to pad with.

    Returns:
        Tokens and masks padded on the left, tiles of images on the right.
    """

    def padded(name: str, value: Tensor, length: int) -> Tensor:
        if value.ndim > 2:
            behind = (0, 0) * (value.ndim - 2) + (0, length - value.shape[1])
            return torch.nn.functional.pad(value, behind)
        filler = {"input_ids": pad, "labels": -100}.get(name, 0)
        return torch.nn.functional.pad(value, (length - value.shape[1], 0), value=filler)

    whole: Inputs = {}
    for name in prompts[0]:
        parts = [prompt[name] for prompt in prompts]
        if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
            length = max(part.shape[1] for part in parts)
            parts = [padded(name, part, length) for part in parts]
        whole[name] = torch.cat(parts)
    return whole


def longer(inputs: Inputs, by: int) -> Inputs:
    """The prompt with its last token repeated `by` more times."""
    return _with_columns(inputs, lambda value: torch.cat((value, *[value[:, -1:]] * by), dim=1))


def _with_columns(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    shape = inputs["input_ids"].shape
    return {name: change(v) if v.shape == shape else v for name, v in inputs.items()}

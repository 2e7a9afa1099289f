"""Prompts as arguments of `generate`, and what the stock model answers."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cdkit.errors import CdkitError

Inputs = dict[str, Tensor]
"""The arguments of `generate`, by name."""


def generate_tokens(model: Any, inputs: Inputs, *, steps: int, **options: Any) -> Any:
    """Generate exactly `steps` tokens by the model's own `generate`.

    The random numbers drawn do not move torch's global generator.

    Args:
        model: The Hugging Face model, with or without a method attached.
        inputs: The prompts, as arguments of `generate`.
        steps: How many tokens; a prompt does not end earlier.
        options: Further arguments of `generate`. Without them decoding is greedy.

    Returns:
        The output of `generate`, with `logits` and `scores` of every step.
    """
    how = {"do_sample": False, "num_beams": 1} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.generate(
            **inputs,
            **how,
            min_new_tokens=steps,
            max_new_tokens=steps,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
        )


def with_other_ending(inputs: Inputs, is_image: Bool[Tensor, "rows tokens"]) -> Inputs:
    """The prompts with other text after their last image.

    Every token after it becomes the prompt's last token, except the first one: that may be a mark
    which closes the image.

    Args:
        inputs: The prompts; a batch may be padded on the left.
        is_image: Which tokens are image tokens.

    Returns:
        The prompts with changed `input_ids`; all else is the same object.

    Raises:
        CdkitError: Where no token would change.
    """
    ids = inputs["input_ids"]
    ahead = is_image.flip(-1).cumsum(dim=-1).flip(-1) > 0
    closing = torch.nn.functional.pad(ahead, (1, 0), value=True)[:, :-1]
    changed = torch.where(closing | ~is_image.any(dim=-1, keepdim=True), ids, ids[:, -1:])
    if changed.equal(ids):
        raise CdkitError(
            "the prompt needs three tokens or more after its last image, not all alike"
        )
    return inputs | {"input_ids": changed}

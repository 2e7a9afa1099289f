"""What a very model allows: said before anything is changed."""

from typing import Any

from torch import nn
from transformers import DynamicCache

from cdkit.errors import CdkitError


def sliding_window(decoder: Any) -> int | None:
    """The shortest window of the decoder's layers; None where all keep all tokens."""
    layers: list[Any] = DynamicCache(config=decoder.config).layers
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=None)


def can_be_hooked(decoder: Any) -> bool:
    check = getattr(decoder, "_can_set_attn_implementation", None)
    return bool(check is not None and check())


def refuse_compiled(model: nn.Module) -> None:
    compiled = hasattr(model, "_orig_mod") or any(
        module._compiled_call_impl is not None
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
    if compiled:
        raise CdkitError(
            "this model, or a module in it, is compiled with torch.compile, which would not see "
            "the method's branches; attach to the model as it was before torch.compile"
        )


def refuse_virtual_tokens(model: nn.Module) -> None:
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise CdkitError(
            f"{type(config).__name__} puts virtual tokens before the prompt, where cdkit cannot "
            "place the image; use an adapter that changes weights, such as LoRA"
        )

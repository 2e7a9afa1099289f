"""Models that a method cannot run on: refused when it is attached."""

import functools
from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from cdkit.errors import CdkitError
from cdkit.generation.call_compatibility import FOREIGN_LOOP
from cdkit.generation.state_compatibility import check_states
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.model_adapter import attentions_of
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.part_kinds import kind_of

ATTENTION_ARGUMENTS = frozenset(
    {
        # what the fast kernel takes; text attention is causal by its mask, and drops nothing
        *("dropout", "scaling", "is_causal"),
        # of the softmax: attention sinks, and the cap of logits
        *("s_aux", "softcap"),
        # what masks and rotated keys already say
        *("sliding_window", "position_ids", "position_embeddings", "cache_position"),
        # what the decoder's other parts read, and hand down to its attention
        *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits"),
        *("return_dict", "num_items_in_batch", "logits_to_keep", CACHE, OLD_CACHE),
        *("token_type_ids", "mm_token_type_ids", "visual_pos_masks", "deepstack_visual_embeds"),
        *("image_grid_thw", "image_sizes", "pixel_attention_mask", "rope_deltas"),
    }
)
"""Arguments that a decoder may pass to its attention while a method changes that attention. Any
other that is not None is refused by name: it would be dropped."""


def unknown_attention_argument(module: nn.Module, name: str) -> CdkitError:
    """The error for an argument that is not in `ATTENTION_ARGUMENTS`."""
    return CdkitError(
        f"{type(module).__name__} passes {name} to its attention, which a method that changes "
        "attention does not know and would drop; use one that changes only the inputs, such as vcd"
    )


def refuse_own_generate(model: nn.Module) -> None:
    """Raise where the checkpoint brought a `generate` of its own (`trust_remote_code=True`)."""
    own = model.__dict__.get("generate")
    if isinstance(own, functools.partial) and own.keywords.get("model") is model:
        raise CdkitError(
            f"the checkpoint of this {type(model).__name__} brings a generate of its own, and "
            f"{FOREIGN_LOOP}; load it with trust_remote_code=False"
        )


def check_attachable(attached: AttachedMethod) -> None:
    """Raise where this very model cannot run the method."""
    method, decoder = attached.method, attached.decoder
    for branch in attached.every_branch:
        for distortion in branch.prompt:
            if distortion.needs_text and attached.processor is None:
                raise CdkitError(
                    f"{kind_of(distortion)} writes text into the prompt: pass processor= to "
                    "cdkit.attach"
                )
    if method.calibrator is not None and attached.rotary is None:
        name = type(decoder).__name__
        why = f"{name} has no rotary embedding of fixed frequencies that explains the keys of its "
        why += "layers"
        if attached.unobserved:
            why = f"how {name} rotates its keys was not found out: {attached.unobserved}"
        raise CdkitError(
            f"{method.name} moves positions by RoPE, but {why}; use a method without a calibrator"
        )
    rewrites = [branch.name for branch in attached.every_branch if branch.prompt]
    if rewrites and attached.why_padding_matters:
        raise CdkitError(
            f"branch {rewrites[0]!r} of {method.name} has prompts of its own, which are padded to "
            f"the length of the original ones; but {attached.why_padding_matters}. Use a method "
            "that leaves the prompt as it is, such as vcd"
        )
    distorted = [distortion for branch in attached.every_branch for distortion in branch.feature]
    if distorted and attached.adapter.features_in_layers:
        raise CdkitError(
            f"{kind_of(distorted[0])} distorts the image features that the decoder is given, and "
            f"{type(decoder).__name__} gets zeros there: its layers add the features. Use a method "
            "that changes pixels, attention or the prompt, such as vcd"
        )
    check_states(attached)
    _check_causal(attached)
    if not attached.hooked:
        return
    if not attached.attention_layers:
        raise CdkitError(
            f"no layer of {type(decoder).__name__} has attention, which {method.name} changes or "
            "reads; use a method that changes only the inputs, such as vcd"
        )
    shards = getattr(attached.model, "tp_size", None) or 1
    if shards > 1:
        raise CdkitError(
            f"the model's heads are spread over {shards} processes (tensor parallelism), and "
            f"{method.name} looks at all of them; load it with device_map, or use a method "
            "that changes only the inputs, such as vcd"
        )
    if not can_be_hooked(decoder):
        raise CdkitError(
            f"{type(decoder).__name__} does not take its attention from Hugging Face's "
            f"attention interface, which {method.name} needs; use a method that changes only "
            "the inputs, such as vcd"
        )


def _check_causal(attached: AttachedMethod) -> None:
    """Raise where a checkpoint's config has its text attend to what follows, which its family does
    not: attention and masks, and what branches share, would be others than the stock model's."""
    if attached.sees_ahead == "in prompts" or not (attached.hooked or attached.branches):
        return
    for layer in attentions_of(attached.adapter, attached.model).values():
        if getattr(layer, "is_causal", True) is False:
            raise CdkitError(
                f"{type(layer).__name__} of this checkpoint attends to tokens that follow, too (in "
                "its config, use_bidirectional_attention or the like), as text encoders do, and "
                f"{attached.method.name} is defined for decoders that are causal on text; load a "
                "checkpoint that writes text, or set that back"
            )


def sliding_window(decoder: Any) -> int | None:
    """The shortest window of the decoder's layers; None where all keep all tokens."""
    layers: list[Any] = DynamicCache(config=decoder.config).layers
    windows = (getattr(layer, "sliding_window", None) for layer in layers)  # a state has none
    return min((window for window in windows if window is not None), default=None)


def has_plain_cache(decoder: Any) -> bool:
    """Whether the cache of each of the decoder's layers holds keys and values and nothing else, or
    nothing at all."""
    layers: list[Any] = DynamicCache(config=decoder.config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return all(type(layer) in plain for layer in layers)


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

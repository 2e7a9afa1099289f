"""What is known of a method on one model, before its first call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import DynamicCache

from cdkit.branches.recurrent_states import keeps_keys
from cdkit.execution.plan import sees_chunks
from cdkit.generation.model_compatibility import has_plain_cache, sliding_window
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.interfaces.image_readout import ImageReadout
from cdkit.interfaces.model_adapter import attentions_of
from cdkit.interfaces.pixel_source import sources_of
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.probing.observed_layers import ObservedLayers, observe_layers
from cdkit.probing.padding import why_padding_matters
from cdkit.row_kernels.choice import find_kernels
from cdkit.states.attached_states import attach_states
from cdkit.states.attached_stream import attach_stream


def method_on_model(
    model: nn.Module,
    given: nn.Module,
    method: Method,
    *,
    processor: Any,
    seed: int,
    sample_ids: tuple[str, ...] | None,
    traced: frozenset[str],
    forced: bool,
    takes_kernels: bool,
) -> AttachedMethod:
    """The method on this model, with the branches and parts that have something to do.

    Args:
        model: The Hugging Face model.
        given: The model as it was given: it may be a PEFT wrapper around it.
        method: The method.
        processor: The model's processor; None where none was given.
        seed: What all noise is drawn from, with the sample's id.
        sample_ids: A name for each prompt; None for digests.
        traced: What is recorded of each step.
        forced: Whether branches run that cannot change the result.
        takes_kernels: Whether fused kernels may be used.

    Raises:
        CdkitError: Where no adapter supports the model, or a part does not fit it.
    """
    adapter = adapter_for(given)
    if not forced and method.calibrator is not None and method.calibrator.is_identity:
        method = replace(method, calibrator=None)
    branches = method.branches if forced else method.live_branches
    states = attach_states(method, adapter, model)
    stream = attach_stream(method, adapter, model, forced=forced)
    image_readout = method.readout if isinstance(method.readout, ImageReadout) else None
    if image_readout and not (forced or method.combiner.uses(image_readout.name)):
        image_readout = None
    every = branches if states is None else branches + states.prompt_branches
    hooked = bool(
        method.calibrator is not None
        or method.interventions
        or method.loop is not None
        or any(branch.attention or branch.feature for branch in every)
        or (states is not None and states.reading("image_attention"))
        or stream is not None
        or any(schedule.reads_attention for schedule in method.schedules)
        or traced & {"image_attention", "mask"}
    )
    decoder: Any = adapter.decoder(model)
    window, attentions = sliding_window(decoder), attentions_of(adapter, model)
    observed = ObservedLayers(None, caches_keys=False)
    if hooked:
        observed = observe_layers(
            decoder, list(attentions.values()), adapter.kwargs_of_one_token(model)
        )
    kept = sum(map(keeps_keys, DynamicCache(config=decoder.config).layers))
    sources = observed.key_sources
    unknown = hooked and not sources and kept < len(attentions)
    if len(sources) != len(attentions):
        sources = tuple(range(len(attentions)))
    kernels = None
    # layers with windows or chunks have masks that only the model makes
    if takes_kernels and hooked and window is None and not sees_chunks(decoder):
        words = decoder.get_input_embeddings().weight
        kernels = find_kernels(words.device, words.dtype, observed.head_dims)
    return AttachedMethod(
        model=model,
        adapter=adapter,
        sources=sources_of(adapter),
        method=method,
        processor=processor,
        seed=seed,
        sample_ids=sample_ids,
        branches=branches,
        rotary=None if method.calibrator is None else adapter.rotary(model),
        unobserved=observed.failure,
        hooked=hooked,
        sees_ahead=adapter.sees_ahead_in(model),
        counts_padding_from=adapter.counts_padding_from(model),
        rope_limit=adapter.rope_limit(model),
        has_plain_cache=has_plain_cache(decoder) and not unknown,
        caches_keys=observed.caches_keys,
        key_sources=sources,
        has_sliding_window=window is not None,
        window=window if hooked else None,
        why_padding_matters=why_padding_matters(decoder),
        token_arguments=tuple(adapter.token_arguments(model)),
        traced=traced,
        decoder=decoder,
        lm_module=adapter.lm_module(model),
        attention_layers=tuple(attentions),
        row_kernels=kernels,
        states=states,
        stream=stream,
        image_readout=image_readout,
    )


def with_colours_of(method: Method, processor: Any) -> Method:
    """The method with the processor's mean and deviation in pixel distortions that need colours.

    Args:
        method: The method.
        processor: The model's processor, or an image processor.
    """
    images = getattr(processor, "image_processor", processor)
    means: Any = getattr(images, "image_mean", None)
    spreads: Any = getattr(images, "image_std", None)
    if means is None or spreads is None:
        return method
    mean, std = tuple(map(float, means)), tuple(map(float, spreads))

    def filled(part: Any) -> Any:
        if not (isinstance(part, PixelDistortion) and part.needs_colours):
            return part
        told: Any = part
        return replace(told, mean=told.mean or mean, std=told.std or std)

    def with_colours(branches: Sequence[Branch]) -> tuple[Branch, ...]:
        return tuple(replace(b, distortions=tuple(map(filled, b.distortions))) for b in branches)

    return replace(
        method,
        branches=with_colours(method.branches),
        prompt_branches=with_colours(method.prompt_branches),
    )

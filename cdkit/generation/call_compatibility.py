"""Calls that a method cannot run in, for their arguments or their lengths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache

from cdkit.errors import CdkitError, PromptError
from cdkit.generation.state_compatibility import check_state_split
from cdkit.interfaces.decoding_loop import Mode
from cdkit.interfaces.model_adapter import SeesAhead
from cdkit.interfaces.part import inner_parts
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of

ASSISTED = "assisted decoding checks tokens in chunks"
FOREIGN_LOOP = "a custom loop may not keep to HF's contract"


def _is_given(value: Any) -> bool:
    return value is not None


REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "assistant_model": (_is_given, ASSISTED),
    "prompt_lookup_num_tokens": (_is_given, ASSISTED),
    "assistant_early_exit": (_is_given, ASSISTED),
    "use_mtp": (bool, ASSISTED),
    "custom_generate": (_is_given, FOREIGN_LOOP),
    "num_beam_groups": (lambda v: v not in (None, 1), FOREIGN_LOOP),
    "force_words_ids": (_is_given, FOREIGN_LOOP),
    "constraints": (_is_given, FOREIGN_LOOP),
    "generation_mode": (lambda v: v not in (None, "text"), "methods need an answer of text"),
    "dola_layers": (_is_given, "it brings its own contrast"),
    "penalty_alpha": (bool, "contrastive search re-ranks with hidden states"),
    "guidance_scale": (lambda v: v not in (None, 1, 1.0), "it adds a second pass of its own"),
    "cache_implementation": (
        # stock generate reads "hybrid" as "nothing was said"
        lambda v: v not in (None, "dynamic", "static", "hybrid"),
        "the branches need the dynamic cache or the static one",
    ),
    "output_router_logits": (bool, "the router logits would hold the rows of every branch"),
    "token_healing": (bool, "it rewrites the prompt"),
    "inputs_embeds": (_is_given, "image tokens are found by their ids; pass input_ids"),
    "labels": (
        # PaliGemma's processor returns labels that are all -100: no loss is computed
        lambda v: v is not None and not (isinstance(v, torch.Tensor) and bool((v == -100).all())),
        "methods act at inference; compute a loss without them",
    ),
}
"""Argument of `generate` or forward -> (whether a value uses it, why it is refused)."""

OVERRIDDEN: Mapping[str, tuple[Callable[[Any], bool], Any]] = {
    "cache_implementation": (REFUSED["cache_implementation"][0], None),
    "use_cache": (lambda v: v is False, True),
    "prefill_chunk_size": (_is_given, None),
}
"""Setting that no token depends on -> (where it is overridden, by what), if nothing but the
checkpoint's generation_config asks for it. A user who asks for it is told that it is refused."""


def setting(name: str, given: Mapping[str, Any], defaults: Sequence[object]) -> Any:
    """An argument's value: as given, else as the first of the configs behind it has it."""
    if name in given and name in OVERRIDDEN and OVERRIDDEN[name][1] is None:
        return given[name]  # None says that there is none, whatever a config says
    values = [given.get(name), *(getattr(config, name, None) for config in defaults)]
    return next((value for value in values if value is not None), None)


def asked_by_checkpoint(name: str, given: Mapping[str, Any], defaults: Sequence[object]) -> bool:
    """Whether the value of `setting` is that of the model's config, the last one, alone."""
    asked = setting(name, given, defaults)
    return asked is not None and setting(name, given, defaults[:-1]) is None


def check_arguments(
    given: Mapping[str, Any], defaults: Sequence[object], method: Method, *, plain: bool
) -> dict[str, Any]:
    """Raise where an argument, or a generation config behind it, asks for what is refused.

    Args:
        given: The arguments of a call, by name.
        defaults: The configs behind them; the last one is the model's.
        method: That is attached.
        plain: Whether the model itself is called, not `generate`.

    Returns:
        The arguments that must be passed on as well, so that `generate` does not take what the
        checkpoint says, and the user did not: see `OVERRIDDEN`.
    """
    overridden: dict[str, Any] = {}
    for name, (is_asked, instead) in () if plain else OVERRIDDEN.items():
        if asked_by_checkpoint(name, given, defaults) and is_asked(getattr(defaults[-1], name)):
            overridden[name] = instead
    for name, (asked, why) in REFUSED.items():
        value = setting(name, given, defaults)
        switched_off = not plain and name in given and given[name] is None
        if not asked(value) or name in overridden or switched_off:
            continue
        what, advice = f"{name}={_short(value)}", "Leave it out"
        if asked_by_checkpoint(name, given, defaults):
            if name == "penalty_alpha" and not _searches_contrastively(given, defaults):
                continue
            config = "config" if plain else "generation_config"
            what += f", which the checkpoint's {config} asks for"
            advice = f"Set model.{config}.{name} = None"
        raise CdkitError(
            f"{method.name} cannot run with {what}: {why}. {advice}, or generate without "
            "cdkit.attach"
        )
    return overridden


IMAGE_TRACE = (
    "use trace=('image_attention',) of cdkit.attach, which keeps the last row's on the image"
)


def check_attentions(
    given: Mapping[str, Any], defaults: Sequence[object], attached: AttachedMethod, *, plain: bool
) -> dict[str, Any]:
    """Raise where attention weights are asked for, but the method changes the original branch's.

    Args:
        given: The arguments of a call, by name.
        defaults: The configs behind them; the last one is the model's.
        attached: The method on its model.
        plain: Whether the model itself is called, not `generate`.

    Returns:
        The arguments that must be passed on as well, where the checkpoint's generation_config alone
        asks for weights: no token depends on them.
    """
    name, method = "output_attentions", attached.method
    asked = setting(name, given, defaults)
    if not asked or not attached.hooked:
        return {}
    acting = [i for i in method.interventions if ORIGINAL in i.branches]
    acting_parts = acting if method.calibrator is None else [method.calibrator, *acting]
    if not acting_parts:
        return {}
    source = ""
    if asked_by_checkpoint(name, given, defaults):
        if not plain:
            return {name: False}
        source = f", which model.config.{name} asks for"
    raise CdkitError(
        f"{method.name} cannot run with {name}={_short(asked)}{source}: "
        f"{kind_of(acting_parts[0])} changes the original branch's attention itself; {IMAGE_TRACE}"
    )


def _searches_contrastively(given: Mapping[str, Any], defaults: Sequence[object]) -> bool:
    """Whether stock `generate` would follow penalty_alpha: without beams or sampling alone."""
    top_k = setting("top_k", given, defaults)
    return mode_of(given, defaults) == "greedy" and (top_k is None or top_k > 1)


def refuse_foreign_loop(name: str, *args: Any, **kwargs: Any) -> NoReturn:
    """In the place of what fetches or runs a loop that is not `generate`'s built-in one."""
    raise CdkitError(
        f"cannot run {name} while a method is attached: {FOREIGN_LOOP}. Use greedy decoding, "
        "sampling, beams or both, or generate without cdkit.attach"
    )


def mode_of(given: Mapping[str, Any], defaults: Sequence[object]) -> Mode:
    """The decode mode that the arguments of `generate`, and the configs behind them, choose."""
    beams = (setting("num_beams", given, defaults) or 1) > 1
    if setting("do_sample", given, defaults):
        return "beam sample" if beams else "sample"
    return "beam" if beams else "greedy"


MODE_ARGUMENTS: Mapping[Mode, str] = {
    "greedy": "do_sample=False, num_beams=1",
    "sample": "do_sample=True, num_beams=1",
    "beam": "do_sample=False, num_beams=5, say",
    "beam sample": "do_sample=True, num_beams=5, say",
}


def check_mode(given: Mapping[str, Any], defaults: Sequence[object], method: Method) -> None:
    """Raise where `generate` decodes in a mode that the method is not defined for."""
    mode = mode_of(given, defaults)
    if mode not in method.modes:
        modes = "; ".join(f"{mode} ({MODE_ARGUMENTS[mode]})" for mode in method.modes)
        said = [
            f"{name}={setting(name, given, defaults)}"
            for name in ("do_sample", "num_beams")
            if asked_by_checkpoint(name, given, defaults)
        ]
        source = f", {' and '.join(said)} from the checkpoint's generation_config" if said else ""
        raise CdkitError(
            f"{method.name} is not defined for decode mode {mode!r}{source} "
            f"({kind_of(method.loop)} brings a loop of its own). It is defined for: {modes}"
        )


def check_loop(given: Mapping[str, Any], defaults: Sequence[object], method: Method) -> None:
    """Raise where an argument needs something that the method's decode loop does not support."""
    refused = {
        "streamer": "its tokens may be taken back; leave it out",
        "synced_gpus": "each process decodes as long as it needs; leave it out",
        "output_scores": "use trace=('logits',) of cdkit.attach, or leave it out",
        "output_logits": "use trace=('logits',) of cdkit.attach, or leave it out",
        "output_hidden_states": "its rows are those of no beam; leave it out",
        "output_attentions": f"{IMAGE_TRACE}, or leave it out",
    }
    for name, why in refused.items():
        if setting(name, given, defaults):
            source = asked_by_checkpoint(name, given, defaults)
            told = f"{name}, which the checkpoint's generation_config asks for" if source else name
            raise CdkitError(
                f"{method.name} cannot run with {told}: {kind_of(method.loop)} brings its own "
                f"loop; {why}"
            )


def check_whole_prompt(
    given: Mapping[str, Any],
    defaults: Sequence[object],
    method: Method,
    *,
    sees_ahead: SeesAhead,
) -> None:
    """Raise where a prompt, or an answer, would be split in a way that a part forbids."""
    chunk, uncached = (
        setting("prefill_chunk_size", given, defaults),
        (setting("use_cache", given, defaults) is False),
    )
    if chunk is not None and sees_ahead != "nowhere":
        raise CdkitError(
            f"{method.name} cannot run with prefill_chunk_size={chunk}: this model's attention is "
            f"not causal {sees_ahead}, which this splits; leave it out"
        )
    calibrator = method.calibrator
    if chunk is not None and calibrator is not None and calibrator.image_rows:
        raise CdkitError(
            f"{method.name} cannot run with prefill_chunk_size={chunk}: {kind_of(calibrator)} "
            "moves image tokens for each other, which this splits. Use image_rows=False, or leave "
            "it out"
        )
    rewrites = [branch.name for branch in method.branches if branch.prompt]
    if chunk is not None and rewrites:
        raise CdkitError(
            f"{method.name} cannot run with prefill_chunk_size={chunk}: branch {rewrites[0]!r} has "
            "a prompt of its own, which does not split where the original does; leave it out"
        )
    if uncached and (method.stateful or method.loop is not None):
        raise CdkitError(
            f"{method.name} cannot run with use_cache=False: what it carries from step to step "
            "lives in the cache; leave it out"
        )
    looks = [branch.name for branch in method.branches if branch.feature]
    if chunk is not None:
        check_state_split(chunk, method)
    if chunk is not None and looks:
        raise CdkitError(
            f"{method.name} cannot run with prefill_chunk_size={chunk}: branch {looks[0]!r} is "
            "made from where the prompt's last row looks, before the prompt goes in; leave it out"
        )
    if (chunk is not None or uncached) and method.whole_prompt_parts:
        asked = "use_cache=False" if chunk is None else f"prefill_chunk_size={chunk}"
        refuse_split(method, asked)


def refuse_split(method: Method, asked: str) -> None:
    part = method.whole_prompt_parts[0]
    nested = (own.split_advice for _, own in inner_parts(part) if own.split_advice)
    advice = part.split_advice or next(nested, "")
    # advice comes with parts whose threshold is taken over several rows or over one
    kind = kind_of(part)
    why = f"the threshold of {kind} is taken over" if advice else f"{kind} depends on"
    leave = f"Use {advice}, or leave it out" if advice else "Leave it out"
    raise CdkitError(
        f"{method.name} cannot run with {asked}: {why} all text rows of the prompt, which this "
        f"splits. {leave}"
    )


def check_cache(cache: object) -> None:
    """Raise where a given cache already holds tokens: their branches are not in it."""
    if isinstance(cache, Cache) and cache.get_seq_length() > 0:
        raise CdkitError(
            f"the given cache already holds {cache.get_seq_length()} tokens, which generate cannot "
            "go on with while a method is attached; leave it out and pass the whole text"
        )
    if isinstance(cache, Cache) and cache.is_compileable:
        raise CdkitError(
            f"{type(cache).__name__} has a fixed size, which the branches' rows do not fit; pass "
            "cache_implementation='static' to generate instead, or leave it out"
        )


def check_static_cache(attached: AttachedMethod) -> None:
    """Raise where the family's stock model answers otherwise with a static cache."""
    if attached.adapter.refuses_static:
        raise CdkitError(
            f"{attached.method.name} cannot run with cache_implementation=static: "
            f"{attached.adapter.refuses_static}; pass cache_implementation='dynamic', or generate "
            "without cdkit.attach"
        )


def check_alignment(
    method: Method,
    keep: int | Tensor,
    *,
    columns: int,
    returned: int,
    aligned: int,
    reads_layers: bool,
) -> None:
    """Raise where logits of a plain call belong to columns with another token in some branch.

    Args:
        method: The method that is attached.
        keep: The `logits_to_keep` of the call.
        columns: How many columns the decoder got.
        returned: How many columns have logits.
        aligned: In how many last columns every branch has the same token.
        reads_layers: Whether inner layers are read out, which is done at the last column alone.
    """
    last = returned
    if isinstance(keep, Tensor):  # these columns; the first of them stands so far from the end
        last = int((columns - keep % columns).max())
    if last == 1:
        return  # what generate reads: the last token's logits, whatever stands before it
    if reads_layers:
        raise CdkitError(
            f"{method.name} reads inner layers at the last token only; pass logits_to_keep=1"
        )
    if last > aligned:
        raise CdkitError(
            f"{method.name} changes the prompt: only its last {aligned} tokens stand "
            f"in every branch, but logits of the last {last} were asked for; pass logits_to_keep"
        )


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__


def new_tokens(ids: Tensor, given: Mapping[str, Any], defaults: Sequence[object]) -> int:
    """How many tokens `generate` may add: Hugging Face adds 20 where nothing is said."""
    new, longest = (setting(name, given, defaults) for name in ("max_new_tokens", "max_length"))
    if new is not None:
        return int(new)
    return 20 if longest is None else max(0, int(longest) - ids.shape[1])


def check_window(attached: AttachedMethod, token_mask: Tensor, new: int) -> None:
    """Raise where a layer would forget the image before the answer ends.

    Args:
        attached: The method on its model.
        token_mask: The prompts' mask: (prompts, tokens), False on padding.
        new: How many tokens may be added.

    Raises:
        PromptError: Where some prompts are too long for the window, and shorter ones would do.
        CdkitError: Where the answer alone is.
    """
    if attached.window is None:
        return
    name, window = attached.method.name, attached.window
    message = (
        f"{name} needs the image tokens all along, but the decoder's sliding window keeps {window} "
        "tokens and prompt and answer may reach {}: shorten the prompt or max_new_tokens, or use a "
        "method that changes only the inputs, such as vcd"
    )
    _check_longest(token_mask, new, window, message)


def check_rope(attached: AttachedMethod, token_mask: Tensor, new: int) -> None:
    """Raise where the rotary frequencies change before the answer ends.

    Args:
        attached: The method on its model.
        token_mask: The mask of the prompts, or of those of a branch: (prompts, tokens), False on
            padding.
        new: How many tokens may be added.

    Raises:
        PromptError: Where some prompts are too long, and shorter ones would do.
        CdkitError: Where the answer alone is.
    """
    limit = attached.rope_limit
    if limit is None:
        return
    message = (
        f"{attached.method.name} runs up to {limit} tokens here, as all rotary frequencies of "
        f"{type(attached.decoder).__name__} change beyond, and prompt and answer may reach {{}}: "
        "shorten the prompt or max_new_tokens, or give fewer or smaller images"
    )
    _check_longest(token_mask, new, limit, message)


def _check_longest(token_mask: Tensor, new: int, limit: int, message: str) -> None:
    """Raise `message`, with the number of tokens, where prompt and answer exceed a limit."""
    longest = token_mask.shape[1] + new
    if longest <= limit:
        return
    lengths = [int(count) + new for count in token_mask.sum(dim=1)]
    reasons = {i: message.format(n) for i, n in enumerate(lengths) if n > limit}
    if new >= limit or not reasons:
        raise CdkitError(message.format(longest))
    raise PromptError(message.format(longest), reasons)


def check_padding(method: Method, columns: int, limit: int) -> None:
    """Raise where padding, of prompts that are shorter than those of another branch, would count.

    Args:
        method: The method that is attached.
        columns: How many columns prompt and answer may have.
        limit: From how many on the model counts padding, as `counts_padding_from` says.
    """
    if columns >= limit:
        raise CdkitError(
            f"{method.name} has branches with prompts of other lengths, of which the shorter ones "
            f"are padded, and from {limit} tokens on this model counts padding: prompt and answer "
            f"may reach {columns}. Shorten the prompt or max_new_tokens, or pass optimize=False"
        )


def refuse_adapter(attached: AttachedMethod) -> NoReturn:
    """Raise for a model whose decoder its forward did not call."""
    raise CdkitError(
        f"the decoder of {type(attached.model).__name__} was not called by its forward; the "
        f"adapter of {attached.method.name} does not fit this model"
    )


def check_eval(model: torch.nn.Module, method: Method) -> None:
    """Raise in train mode."""
    if model.training:
        raise CdkitError(f"{method.name} runs at inference only: call model.eval() first")


def refuse_running(model: torch.nn.Module, method: Method) -> None:
    """Raise for a model in train mode, or with gradients on."""
    check_eval(model, method)
    if torch.is_grad_enabled():
        raise CdkitError(
            f"{method.name} runs without gradients: call the model under torch.inference_mode()"
        )

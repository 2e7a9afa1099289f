"""The adapter of a model: that of its type, or a generic one."""

from torch import nn
from transformers import PreTrainedModel

from cdkit.errors import CdkitError
from cdkit.interfaces.model_adapter import ADAPTERS, GENERIC_ADAPTERS, ModelAdapter

HOW_TO_ADD = (
    "To add a family, subclass cdkit.models.layouts.standard.StandardAdapter, register the class "
    "under its model_type and hold it to cdkit.testing.check_adapter: docs/own_model.md"
)


def adapter_for(model: nn.Module) -> ModelAdapter:
    """Find the adapter of a model.

    Args:
        model: A Hugging Face model; a PEFT wrapper around it will do.

    Returns:
        The adapter registered under `config.model_type`; else a generic one whose check passes.

    Raises:
        CdkitError: Where no adapter supports the model; it says why.
    """
    _refuse_wrapper(unwrap(model))
    config = getattr(unwrap(model), "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise CdkitError(
            f"{type(model).__name__} has no config.model_type; pass a Hugging Face model, such as "
            "AutoModelForImageTextToText.from_pretrained(...)"
        )
    text = getattr(config, "text_config", None)  # InstructBLIP says it in its text_config
    if any(getattr(one, "is_encoder_decoder", False) for one in (config, text)):
        raise CdkitError(
            f"{model_type} is an encoder-decoder: its answer attends to the image by "
            "cross-attention alone, and cdkit's methods are defined for decoder-only models; "
            "`cdkit list models --all` says which types run"
        )
    if model_type not in ADAPTERS:
        return _fallback(unwrap(model), model_type)
    adapter = ADAPTERS[model_type]()
    adapter.check(unwrap(model))
    return adapter


def _refuse_wrapper(model: nn.Module) -> None:
    """Raise for a module around a model, such as DataParallel: its child is to be attached to."""
    if isinstance(model, PreTrainedModel):
        return
    for name, child in model.named_children():
        if isinstance(child, PreTrainedModel) and child.can_generate():
            raise CdkitError(
                f"{type(model).__name__} is a wrapper around {type(child).__name__}, which cdkit "
                f"cannot see through: attach to model.{name}, and call model.{name}.generate"
            )


def _fallback(model: nn.Module, model_type: str) -> ModelAdapter:
    reasons = []
    for name, kind in GENERIC_ADAPTERS.items():
        adapter = kind()
        try:
            adapter.check(model)
        except CdkitError as error:
            reasons.append(f"the {name} one cannot stand in: {error}".rstrip("."))
        else:
            return adapter
    why = "; ".join(reasons) or HOW_TO_ADD
    raise CdkitError(
        f"{type(model).__name__} (model_type {model_type!r}) has no adapter of its own, and {why}"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT wrapper, whose LoRA weights stay active."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model

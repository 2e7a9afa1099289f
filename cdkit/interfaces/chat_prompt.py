"""One question as a turn of a chat, by a processor's chat template."""

from collections.abc import Mapping
from typing import Any

from cdkit.errors import CdkitError


def chat_prompt(
    question: str,
    *,
    images: int,
    processor: Any,
    fallback: str,
    placeholder: str = "<image>\n",
    system: str | None = None,
) -> str:
    """Write a prompt by the processor's chat template, or by `fallback` where it has none.

    Args:
        question: What to ask.
        images: How many images stand before the question.
        processor: The model's processor.
        fallback: A format string with the fields `images` and `question`.
        placeholder: What stands for one image in `fallback`.
        system: The system message; None for the one that the chat template has by itself, "" for
            an empty one.

    Raises:
        CdkitError: Where the prompt has no place for the system message.
    """
    if not getattr(processor, "chat_template", None):
        if system:
            raise no_system_message(f"{type(processor).__name__} has no chat template")
        return fallback.format(images=placeholder * images, question=question)
    content: list[Mapping[str, str]] = [{"type": "image"}] * images
    message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    if system is not None:
        return _with_system(system, message, processor)
    return str(processor.apply_chat_template([message], add_generation_prompt=True))


def no_system_message(why: str) -> CdkitError:
    """The error of a model whose prompt has no place for a system message."""
    return CdkitError(
        f"the model has no system message: {why}. Leave the system message out, or give the whole "
        "conversation as a template"
    )


def _with_system(system: str, message: Mapping[str, Any], processor: Any) -> str:
    plain = str(processor.apply_chat_template([message], add_generation_prompt=True))
    if system:
        text = _chat_with(system, message, processor)
        if text is None:
            raise no_system_message("its chat template refuses one, or leaves it out")
        return text
    marked = _chat_with("?!?", message, processor)
    if marked is None or marked.endswith(plain):
        return plain  # the chat template has none by itself
    return _chat_with("", message, processor) or plain


def _chat_with(system: str, message: Mapping[str, Any], processor: Any) -> str | None:
    """The chat with a system message; None where the chat template refuses or drops it."""
    from jinja2 import TemplateError  # transformers imports it where a template is rendered

    contents: tuple[Any, ...] = ([{"type": "text", "text": system}], system)
    for content in contents:  # some templates take a list of parts here, others a text
        chat = [{"role": "system", "content": content}, message]
        try:
            text = str(processor.apply_chat_template(chat, add_generation_prompt=True))
        except (TemplateError, TypeError):
            continue
        if system in text and "{'type'" not in text:  # a list that was printed as it is
            return text
    return None

"""How a protocol meets a model's prompt: another system message, or a whole conversation."""

import inspect
from collections.abc import Callable
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.protocols.protocol import Protocol, check_template
from cdkit.interfaces.chat_prompt import no_system_message
from cdkit.interfaces.model_adapter import ModelAdapter


def prompt_under(
    protocol: Protocol | None,
    question: str,
    *,
    adapter: ModelAdapter,
    processor: Any,
    images: int = 1,
) -> str:
    """Write a prompt as a protocol wants it.

    Args:
        protocol: The protocol, as it is for this model (`Protocol.at`); None for none.
        question: What to ask.
        adapter: The model's adapter.
        processor: The model's processor, which will get the text.
        images: How many images stand before the question.

    Returns:
        The prompt; without a protocol, and where it says nothing of prompts, the adapter's own.

    Raises:
        CdkitError: The model has no system message, or takes no other conversation.
    """
    if protocol is not None and protocol.template is not None:
        shown = images_text(adapter, processor, images)
        return conversation(protocol.template, question=question, images=shown)
    if protocol is None or protocol.system is None:
        return str(adapter.prompt(question, images=images, processor=processor))
    if "system" not in inspect.signature(adapter.prompt).parameters:
        raise no_system_message(f"the adapter {type(adapter).__name__} knows of none")
    return str(adapter.prompt(question, images=images, processor=processor, system=protocol.system))


def conversation(template: str, *, question: str, images: str) -> str:
    """Fill in a template: the question's own braces stay as they are.

    Args:
        template: A text with `{images}` and `{question}`, each once.
        question: What to ask.
        images: What stands for the images.

    Returns:
        The prompt.

    Raises:
        CdkitError: The template lacks a place, or has one twice.
    """
    check_template(template)
    before, _, after = template.partition("{question}")
    return f"{before.replace('{images}', images)}{question}{after.replace('{images}', images)}"


def images_text(adapter: ModelAdapter, processor: Any, images: int) -> str:
    """What stands for so many images in a prompt of the model, without blanks around it.

    It is what an image adds to the prompt that the adapter writes.

    Raises:
        CdkitError: The prompt with images is not the one without, and something in one place.
    """
    write: Callable[[int], str] = lambda count: str(  # noqa: E731
        adapter.prompt("?", images=count, processor=processor)
    )
    with_images, without = write(images), write(0)
    start = 0
    while start < len(without) and with_images[start : start + 1] == without[start]:
        start += 1
    rest = without[start:]
    if len(with_images) < len(without) or not with_images.endswith(rest):
        raise CdkitError(
            f"the prompts of {type(adapter).__name__} cannot be given another conversation: with "
            "an image more changes than the image's place; leave the template out"
        )
    return with_images[start : len(with_images) - len(rest)].strip()

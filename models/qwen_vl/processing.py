"""Qwen-VL's processor: `<img>path</img>` in a text stands for an image."""

import re
from typing import Any, no_type_check

from transformers import ProcessorMixin

from cdkit import CdkitError

from .tokenizer import IMAGE, IMAGE_END, IMAGE_START

MARKER = re.compile(f"{re.escape(IMAGE_START)}(.*?){re.escape(IMAGE_END)}", re.DOTALL)
"""An image in a text, with what stands between its tags."""


def _say(image: str) -> str:
    """A Jinja macro: a turn's content, each image of it as `image`, numbered by `images.count`."""
    return (
        "{% macro say(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% set images = namespace(count=0) %}{% for part in content %}"
        "{% if part['type'] == 'image' %}{% set images.count = images.count + 1 %}"
        + image
        + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endmacro %}"
    )


CHAT_TEMPLATE = (
    _say("Picture {{ images.count }}:<img></img>\n") + "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ say(message['content']) }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen-VL-Chat's: ChatML, a system turn where none is given; images are numbered in each turn."""
BASE_TEMPLATE = (
    _say("<img></img>") + "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' }}{% endif %}{{ say(message['content']) }}"
    "{% if message['role'] == 'user' and (add_generation_prompt or not loop.last) %}"
    "{{ ' Answer:' }}{% endif %}{% endfor %}"
)
"""The base model's, which knows no turns: image, question, "Answer:", as in its evaluation."""


class QwenVLProcessor(ProcessorMixin):
    """Texts and images to ids and pixels.

    A text has `<img>path</img>` for each image; the images may be passed instead, in the order of
    the texts, and then what stands between the tags is not read. Between the tags of the result
    stand `image_seq_length` times `<imgpad>`. The original writes the path's bytes there, for its
    model to open the file; the decoder never sees them.
    """

    image_seq_length: int

    @no_type_check  # transformers reads the names of its arguments off its code
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_seq_length: int = 256,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> Any:
        if videos is not None or audio is not None:
            raise CdkitError("Qwen-VL reads images and text; it has no use for videos and audio")
        if text is None:
            return super().__call__(images=images, **kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        if images is None:
            images = [path for one in texts for path in _paths(one)] or None
        marked = [MARKER.sub(f"{IMAGE_START}{IMAGE}{IMAGE_END}", one) for one in texts]
        for one in marked:
            tags = one.count(IMAGE_START), one.count(IMAGE_END), one.count(IMAGE)
            if len(set(tags)) > 1:
                raise CdkitError(
                    f"a text has {tags[0]} {IMAGE_START}, {tags[1]} {IMAGE_END} and {tags[2]} "
                    f"images between them; write {IMAGE_START}path{IMAGE_END} for each image"
                )
        return super().__call__(images=images, text=marked, **kwargs)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        return IMAGE * self.image_seq_length


def _paths(text: str) -> list[str]:
    """What stands between the tags, where the images are not passed."""
    paths = [path.strip() for path in MARKER.findall(text)]
    if not all(paths):
        raise CdkitError(
            f"a text has {IMAGE_START}{IMAGE_END} without a path and no images are passed; pass "
            "images=[...], or write the path between the tags"
        )
    return paths

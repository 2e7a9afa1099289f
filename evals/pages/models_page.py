"""docs/models.md, made from the registry of adapters: `python -m cdkit.evals.pages.models_page`."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

import cdkit
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.pages.type_table import KINDS, type_rows
from cdkit.interfaces.model_adapter import GENERIC_ADAPTERS, ModelAdapter, SeesAhead

PAGE = Path("docs/models.md")
COMMAND = "python -m cdkit.evals.pages.models_page"
PIXELS = "pixel_values"
ATTENTION: dict[SeesAhead, str] = {
    "nowhere": "causal",
    "in images": "causal; tokens of an image see all of it",
    "across images": "causal; tokens of the images, and their marks, see all of these",
    "in prompts": "both ways in the prompt",
}


@dataclass(frozen=True)
class Family:
    """What an adapter and the model's own classes say."""

    name: str
    stock: str
    """The model's class."""
    about: str
    """The first paragraph of the adapter's docstring, without the class."""
    more: str
    """The rest of it."""
    axes: bool
    """Whether positions have three axes."""
    attention: str
    required: tuple[str, ...]
    """What `generate` needs beside `pixel_values`, or in their place."""
    videos: tuple[str, ...] | None
    """What `generate` needs beside the pixels of videos; None where the adapter reads none."""
    most_images: int | None
    fallback: str
    """The prompt where the processor has no chat template."""
    example: str


@dataclass(frozen=True)
class GenericFamily:
    """An adapter for any model type that has none of its own."""

    name: str
    about: str
    more: str


def page() -> str:
    """The page in Markdown: of cdkit's own adapters, whatever other packages bring."""
    return rendered(
        "models.md",
        filters={},
        families=list(families()),
        generics=list(generics()),
        kinds=KINDS,
        types=type_rows(),
    )


def families() -> Iterator[Family]:
    """All that cdkit itself brings, by name."""
    for name, adapter in cdkit.ADAPTERS.items():
        if adapter.__module__.startswith("cdkit.models."):
            yield _family(name, adapter)


def generics() -> Iterator[GenericFamily]:
    """What cdkit itself brings for the rest."""
    for name, adapter in GENERIC_ADAPTERS.items():
        if adapter.__module__.startswith("cdkit.models."):
            about, _, more = (inspect.getdoc(adapter) or "").partition("\n\n")
            yield GenericFamily(name, " ".join(about.split()), more)


def _family(name: str, adapter: type[ModelAdapter]) -> Family:
    config: Any = CONFIG_MAPPING[name]
    stock: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]
    about, _, more = (inspect.getdoc(adapter) or "").partition("\n\n")
    pixels = (adapter.pixel_argument,) if adapter.pixel_argument != PIXELS else ()
    return Family(
        name=name,
        stock=stock.__name__,
        about=re.sub(rf"^{stock.__name__}: ", "", " ".join(about.split())),
        more=more,
        axes=hasattr(MODEL_MAPPING.get(config, None), "get_rope_index"),
        attention=ATTENTION[adapter.sees_ahead],
        required=(*pixels, *adapter.required),
        videos=None if adapter.videos is None else adapter.videos.required,
        most_images=getattr(adapter, "most_images", None),
        fallback=getattr(adapter, "placeholder", "").join(
            getattr(adapter, "fallback", "").split("{images}")
        ),
        example=adapter.example,
    )


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()

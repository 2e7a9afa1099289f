"""The processor of a checkpoint: without videos, and with what its files leave to the model."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto import image_processing_auto
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from cdkit.errors import CdkitError

Source = Mapping[str, Any]
"""What every `from_pretrained` here is given beside the path: the revision, and no remote code."""


def load_processor(path: str | Path, model: nn.Module, source: Source) -> Any:
    """The processor in `path`, able to encode images and left-padded text for `model`.

    What LLaVA's and BLIP-2's processors must know of the model, and fine-tunes often leave out of
    processor_config.json, is filled from the model's config.

    Raises:
        CdkitError: It has no image processor, a package that it needs is missing, or neither its
            files nor the config say the size of a patch.
    """
    config: Any = model.config
    try:
        processor = read_processor(path, config, source)
    except (ImportError, ValueError) as error:  # as transformers words it, by who asks for it
        if lacking := _lacking(config, error):
            raise CdkitError(lacking) from None
        raise
    if getattr(processor, "image_processor", None) is None:
        raise CdkitError(
            f"the processor in {str(path)!r} is a {type(processor).__name__}, which reads no "
            "images: add the preprocessor_config.json of the model that it was tuned from"
        )
    _fill(processor, _stored(processor, path, source), model)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.padding_side = "left"  # generation continues at the right end
        if tokenizer.pad_token is None:  # masked wherever it stands: any token will do
            tokenizer.pad_token = tokenizer.eos_token or _end_of_config(tokenizer, model, path)
    return processor


def _end_of_config(tokenizer: Any, model: Any, path: str | Path) -> str:
    """The token that pads or ends a text by the model's configs, where the tokenizer's own file is
    gone."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        for name in ("pad_token_id", "eos_token_id"):
            found = getattr(config, name, None)
            token = found[0] if isinstance(found, list) and found else found
            if isinstance(token, int) and 0 <= token < len(tokenizer):
                return str(tokenizer.convert_ids_to_tokens(token))
    raise CdkitError(
        f"the tokenizer in {str(path)!r} has no pad_token and no eos_token, and the model's config "
        "names none: add the tokenizer_config.json of the model that it was tuned from"
    )


VISUAL = ("image", "img", "video", "vision")
"""Parts of the names under which processors, tokenizers and configs keep a picture's tokens."""


def picture_tokens(processor: Any, config: Any) -> frozenset[str]:
    """The texts that stand for pictures in a prompt: placeholders, and the marks around them.

    They are found by their names (`image_token`, `vision_start_token_id`, ...), in the processor,
    the tokenizer and the config.

    Args:
        processor: The model's processor.
        config: The model's config.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    found: set[str] = set()
    for holder in (processor, tokenizer):
        named = {**getattr(holder, "__dict__", {}), **getattr(holder, "special_tokens_map", {})}
        for name, value in named.items():
            # boi_token and eoi_token: begin and end of image
            if (_is_visual(name) and name.endswith(("token", "tag"))) or name in MARKS:
                found.add(str(value))
    if tokenizer is not None:
        ids = [
            value
            for name, value in vars(config).items()
            if _is_visual(name) and name.endswith(("token_id", "token_index", "token"))
            if isinstance(value, int) and 0 <= value < len(tokenizer)
        ]
        found |= {str(token) for token in tokenizer.convert_ids_to_tokens(ids)}
    return frozenset(found - {"", "None"})


MARKS = ("boi_token", "eoi_token")


def _is_visual(name: str) -> bool:
    return any(word in name for word in VISUAL)


def check_prompt(prompt: str, tokens: Collection[str]) -> None:
    """Raise where a question holds a token that stands for a picture.

    Args:
        prompt: The question, without a chat template.
        tokens: As `picture_tokens` finds them.
    """
    if there := sorted(token for token in tokens if token in prompt):
        raise CdkitError(
            f"the prompt {shortened(prompt)} holds {', '.join(there)}, which stands for a picture "
            "here: leave it out, as each image gets its place before the question by itself"
        )


def check_positions(length: int, config: Any) -> None:
    """Raise where a prompt has more tokens than the model has positions.

    Args:
        length: Tokens of the prompt, those of its images too.
        config: The model's config.
    """
    most = positions(config)
    if most is not None and length > most:
        raise CdkitError(
            f"the prompt has {length} tokens, but the model has positions for {most} "
            "(max_position_embeddings): shorten the prompt, or give fewer or smaller images"
        )


def positions(config: Any) -> int | None:
    """The most tokens that the model has positions for; None where its config does not say."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if most is None else int(most)


def shortened(prompt: str, most: int = 60) -> str:
    """The prompt in quotes, cut off where it is long."""
    return repr(prompt if len(prompt) <= most else f"{prompt[:most]}...")


def _lacking(config: Any, error: Exception) -> str:
    """Which package the processor of this family lacks, and how to get it; empty for none."""
    names: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    own = names.get(config.model_type)
    if isinstance(own, dict) and "pil" not in own and not is_torchvision_available():
        return (
            f"{own.get('torchvision')}, the image processor of {config.model_type}, needs "
            "torchvision (transformers has none of it for Pillow): install the torchvision that "
            f"was built for torch {torch.__version__}, from where that torch came from"
        )
    if not isinstance(error, ImportError):
        return ""
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return f"the processor of {config.model_type} lacks a package: {said}"


def _stored(processor: Any, path: str | Path, source: Source) -> Mapping[str, Any]:
    """The settings that the processor's files hold; a missing one has its class's default."""
    try:
        settings: Mapping[str, Any] = type(processor).get_processor_dict(path, **source)[0]
    except OSError:
        return {}
    return settings


def _fill(processor: Any, stored: Mapping[str, Any], model: nn.Module) -> None:
    config: Any = model.config
    vision = getattr(config, "vision_config", None)
    known = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_query_tokens": getattr(config, "num_query_tokens", None),
        "num_image_tokens": _positions(model),
    }
    for name, value in known.items():
        if value is not None and getattr(processor, name, value) is None:
            setattr(processor, name, value)
    extra = _extra_positions(model)
    place = "num_additional_image_tokens"
    if extra is not None and hasattr(processor, place) and stored.get(place) is None:
        setattr(processor, place, extra)
    if getattr(processor, "patch_size", 1) is None:
        raise CdkitError(
            f"the {type(processor).__name__} has no patch_size, and the model's vision_config has "
            "none either: add it to processor_config.json"
        )


def _embeddings(model: nn.Module) -> tuple[int, int] | None:
    """(positions, patches) of the first part of the model that counts both, as CLIP's does."""
    for module in model.modules():
        counts = getattr(module, "num_positions", None), getattr(module, "num_patches", None)
        if isinstance(counts[0], int) and isinstance(counts[1], int):
            return counts[0], counts[1]
    return None


def _positions(model: nn.Module) -> int | None:
    found = _embeddings(model)
    return None if found is None else found[0]


def _extra_positions(model: nn.Module) -> int | None:
    """Positions beside the patches: one where there is a class token."""
    found = _embeddings(model)
    return None if found is None else found[0] - found[1]


class NoVideos:
    """Stands where a processor keeps its video processor, which needs torchvision."""

    num_frames = fps = None  # SmolVLM's chat template asks for them
    model_input_names = ()
    _auto_class = None  # read where a processor is saved

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise CdkitError(
            "videos need the checkpoint's video processor, which needs torchvision: install the "
            f"torchvision that was built for torch {torch.__version__}, and a decoder such as av "
            "(pip install av) for video files. Without it this processor reads images and text "
            "alone; pixel_values_videos made otherwise can be passed to generate"
        )


def read_processor(path: str | Path, config: PreTrainedConfig, source: Source) -> Any:
    """The processor in `path` as its files say; `load_processor` completes it for a model."""
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if not is_torchvision_available() and kind is not None:
        places = kind.get_attributes()
        if set(places) == {"image_processor", "tokenizer", "video_processor"}:
            return _of_images(kind, places, path, source)
    return AutoProcessor.from_pretrained(path, **source)  # type: ignore[no-untyped-call]


def _of_images(kind: Any, places: Sequence[str], path: str | Path, source: Source) -> Any:
    """A processor of `kind` without its video processor; `places` are its parts, in order."""

    class ImagesAlone(kind):  # type: ignore[misc]
        """Takes the stand-in, which is no video processor by its class, and never saves it."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, NoVideos):
                return NoVideos
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            return {k: v for k, v in super().to_dict().items() if not isinstance(v, NoVideos)}

    ImagesAlone.__name__ = ImagesAlone.__qualname__ = kind.__name__
    auto: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    parts = [auto[p].from_pretrained(path, **source) if p in auto else NoVideos() for p in places]
    settings, more = kind.get_processor_dict(path, **source)
    return ImagesAlone.from_args_and_dict(parts, settings, **more)

"""Families that have no file here: an adapter that searches the model for its parts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import getsource, signature
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DummyLayer, DynamicLayer

from cdkit import GENERIC_ADAPTERS, HOW_TO_ADD, CdkitError, UnmatchedPixelsError, chat_prompt
from cdkit.models.layouts.padded_images import joined_by_size, pixels_by_size
from cdkit.models.layouts.patches import patch_places
from cdkit.models.layouts.sized_patches import (
    joined_by_sizes,
    sizes_of_patches,
    split_by_sizes,
)
from cdkit.models.layouts.standard import (
    StandardAdapter,
    attention_in,
    final_norm,
    one_entry_each,
    runs,
    tiles_by_tokens,
)
from cdkit.models.layouts.unordered import entries_of_images, joined_values, pixel_tensors

IMAGE_TOKEN = ("image_token_id", "image_token_index")
"""What configs call the id of the image token."""


@GENERIC_ADAPTERS.register("generic")
class Generic(StandardAdapter):
    """A model type without an adapter, with image tokens in the text and a Llama-like decoder.

    Each run of image tokens counts as an image, so two pictures with nothing between count as one,
    and a picture with marks inside as several. An entry of `pixel_values` is the picture of an
    image, or one of its tiles; with `image_grid_thw` it is a patch, and so it is with the sizes of
    `cdkit.models.layouts.sized_patches`. Where pixels come in another form, or in several tensors,
    methods that move pixels are refused, and noise is added to each number by itself.
    """

    example: ClassVar[str] = "stepfun-ai/GOT-OCR-2.0-hf"
    needs_check: ClassVar[bool] = True
    no_places: ClassVar[str] = (
        "the generic adapter does not know in which order this family writes the tokens of a "
        "picture"
    )

    def check(self, model: Any) -> None:
        _check_inner_models(model)
        _check_cross_attention(model)
        _check_generate(model)
        self.check_images(model)
        decoder = self.decoder(model)
        _check_decoder(decoder)
        owner, attribute = self.encoder(model)
        if owner is decoder:
            raise CdkitError(
                "its decoder encodes the image itself: image tokens are words of its vocabulary, "
                f"so there are no features of an image to replace. {OTHERS}"
            )
        if "pixel_values" not in signature(model.forward).parameters:
            raise CdkitError(
                f"its forward takes no pixel_values, so how it is given images is not known. "
                f"{HOW_TO_ADD}"
            )
        for name in signature(getattr(owner, attribute)).parameters:
            if name.endswith("input_ids"):
                raise CdkitError(f"its image encoder reads text, too ({name}). {HOW_TO_ADD}")

    def check_images(self, model: Any) -> None:
        image_token(model)

    def decoder(self, model: Any) -> nn.Module:
        """The module with layers that owns the embeddings of the text."""
        embeddings = _embeddings(model)
        for module in model.modules():
            if hasattr(module, "layers") and any(
                child is embeddings for child in module.children()
            ):
                found: nn.Module = module
                return found
        raise CdkitError(
            f"no module of it has both the text's embeddings and a list of layers. {HOW_TO_ADD}"
        )

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        """The innermost module with `get_image_features`."""
        owners = [m for m in model.modules() if hasattr(m, "get_image_features")]
        if not owners:
            raise CdkitError(
                "no module of it has get_image_features, so where its images are encoded is not "
                f"known. {HOW_TO_ADD}"
            )
        return owners[-1], "get_image_features"

    def logits(
        self, model: Any, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        states = final_norm(self.decoder(model))(hidden) if norm else hidden
        return _after_head(model, _head(model)(states))

    def token_arguments(self, model: Any) -> Sequence[str]:
        """What both the model and its decoder take as the types of tokens."""
        decoder, whole = (
            signature(type(module).forward).parameters for module in (self.decoder(model), model)
        )
        return [name for name in decoder if name.endswith("token_type_ids") and name in whole]

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == image_token(model))

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        pixels, grids = given["pixel_values"], given.get("image_grid_thw")
        if len(names := pixel_tensors(given)) > 1:
            raise UnmatchedPixelsError(f"pixels come in {names[1]} as well")
        if grids is not None:
            return _of_grids(model, given, tokens)
        if sizes_of_patches(given) is not None:
            return split_by_sizes(given, tokens)
        if pixels.ndim == 5 and pixels.shape[2] == 3 and len(pixels) == len(tokens):
            return [entry[:count] for entry, count in zip(pixels, _tiles(pixels), strict=True)]
        if pixels.ndim == 4 and pixels.shape[1] == 3 and len(pixels) > len(tokens):
            return _of_tiles(pixels, tokens)
        if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) != len(tokens):
            raise UnmatchedPixelsError(
                f"pixel_values has shape {tuple(pixels.shape)}, not ({len(tokens)}, 3, height, "
                f"width), for {len(tokens)} runs of image tokens"
            )
        return pixels_by_size(given) if _padded(given) else one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        pixels = given["pixel_values"]
        if given.get("image_grid_thw") is not None:
            return _joined_grids(model, images, given)
        if sizes_of_patches(given) is not None:
            return joined_by_sizes(images, given)
        if pixels.ndim == 5:
            pairs = zip(pixels, images, strict=True)
            return torch.stack([torch.cat((image, entry[len(image) :])) for entry, image in pairs])
        if len(pixels) > len(images):
            return torch.cat(list(images))
        return joined_by_size(images, given)

    def split_values(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        parts = [entries_of_images(name, given, tokens) for name in pixel_tensors(given)]
        return [torch.cat([part.flatten() for part in image]) for image in zip(*parts, strict=True)]

    def join_values(
        self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        return joined_values(images, given)

    def prompt(
        self, question: str, *, images: int, processor: Any, system: str | None = None
    ) -> str:
        if not getattr(processor, "chat_template", None):
            raise CdkitError(
                f"{type(processor).__name__} has no chat template, and how this family writes a "
                "prompt is not known; pass a processor that has one, or write the prompt yourself"
            )
        return chat_prompt(question, images=images, processor=processor, fallback="", system=system)


OTHERS = "No adapter can change that; `cdkit list models --all` says which types run"
"""What to do where a family is outside of what cdkit's methods are defined for."""
CROSS = re.compile(r"(^|_)(cross_?attn|cross_?attention|encoder_attn|encoder_decoder_attn)(_|$)")
"""What transformers calls attention from text to what an encoder made."""


def image_token(model: Any) -> int:
    """The id of the image token, as the config has it."""
    for name in IMAGE_TOKEN:
        token = getattr(model.config, name, None)
        if isinstance(token, int):
            return token
    raise CdkitError(
        f"the text of a prompt has no image tokens: its config has no "
        f"{' and no '.join(IMAGE_TOKEN)}. {OTHERS}"
    )


def _embeddings(model: Any) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def _head(model: Any) -> nn.Module:
    """The output head: of the model itself, or of a language model inside."""
    heads = [model.get_output_embeddings(), *(getattr(m, "lm_head", None) for m in model.modules())]
    found: nn.Module | None = next((head for head in heads if head is not None), None)
    if found is None:
        raise CdkitError("it names no output head")
    return found


AFTER_HEAD: Mapping[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
    "logits_scaling": ("logits_scaling", torch.div),
    "logits_mup_width_multiplier": ("logits_mup_width_multiplier", torch.div),
    "output_multiplier": ("output_multiplier", torch.mul),
    "logit_softcap": ("final_logit_softcapping", lambda x, cap: cap * torch.tanh(x / cap)),
}
"""Word in a model's forward -> the setting of its text config that says what it does to the logits
of its head, and how, in this order."""


def _after_head(model: Any, logits: Tensor) -> Tensor:
    """What the model's forward does to the logits of its head: not every family that has such a
    setting uses it there, so its source is read."""
    source, config = getsource(type(model).forward), model.config.get_text_config()
    for word, (name, apply) in AFTER_HEAD.items():
        value = getattr(config, name, None)
        if value is not None and word in source:
            logits = apply(logits, value)
    return logits


def _check_inner_models(model: Any) -> None:
    """Refuse several models in one, of which one answers: that one is to be attached to."""
    for name, module in model.named_children():
        generates = isinstance(module, PreTrainedModel) and module.can_generate()
        if generates and hasattr(module, "get_image_features"):
            raise CdkitError(
                f"it is several models in one, and {type(module).__name__} answers about images: "
                f"attach to model.{name}, and call model.{name}.generate"
            )


def _check_cross_attention(model: Any) -> None:
    """Refuse a model whose text attends to what an encoder made, not to image tokens."""
    vision = {
        id(module)
        for name, part in model.named_modules()
        if re.search(
            r"vision|visual|image|qformer|perceiver|resampler|aligner|projector|connector", name
        )
        for module in part.modules()
    }
    for name, module in model.named_modules():
        if id(module) not in vision and CROSS.search(name.rpartition(".")[2]):
            raise CdkitError(
                f"its text takes the image in by cross-attention ({name}), and cdkit's methods are "
                f"defined for image tokens among those of the text. {OTHERS}"
            )


def _check_generate(model: Any) -> None:
    """Refuse a model that does not answer token by token."""
    if not isinstance(model, GenerationMixin):
        why = "it has no generate, so it does not answer in text"
        if hasattr(model, "generate"):
            why = (
                "its generate is one of its own, not Hugging Face's, in which each step gives the "
                "logits of one token"
            )
        raise CdkitError(f"{why}. {OTHERS}")


def _check_decoder(decoder: Any) -> None:
    """Refuse a decoder with an attention that is not found, or without keys and values of its own.

    Layers may have no attention: those that keep a recurrent state, or no state at all.
    """
    name = f"its decoder {type(decoder).__name__}"
    caches: list[Any] = DynamicCache(config=decoder.config).layers
    if len(caches) < len(decoder.layers):
        raise CdkitError(
            f"{len(decoder.layers) - len(caches)} layers of {name} use the keys and values of "
            f"layers below them. {OTHERS}"
        )
    for layer, cache in zip(decoder.layers, caches, strict=True):
        if isinstance(cache, CacheLayerMixin) and attention_in(layer) is None:
            raise CdkitError(
                f"layer {type(layer).__name__} of {name} has no self_attn. {HOW_TO_ADD}"
            )
        # a layer that uses the keys of one below it has an empty cache
        known = isinstance(cache, DynamicLayer | DummyLayer)
        if attention_in(layer) is not None and not known:
            raise CdkitError(f"layers of {name} keep no keys and values. {OTHERS}")
    hooked = getattr(decoder, "_can_set_attn_implementation", None)
    if hooked is None or not hooked():
        raise CdkitError(
            f"{name} computes its attention itself, not through Hugging Face's interface. {OTHERS}"
        )


def _tiles(pixels: Float[Tensor, "images tiles 3 height width"]) -> list[int]:
    """How many tiles each image has; those that fill it up, at its end, are all zeros."""
    filled = (pixels != 0).flatten(2).any(dim=-1).int()
    return [max(1, int(count)) for count in filled.flip(1).cummax(dim=1).values.sum(dim=1)]


def _of_tiles(pixels: Float[Tensor, "tiles 3 height width"], tokens: Sequence[int]) -> list[Tensor]:
    """The tiles of each image, where each tile has the same number of tokens."""
    each, rest = divmod(sum(tokens), len(pixels))
    if rest or any(count % each for count in tokens):
        raise UnmatchedPixelsError(
            f"pixel_values has {len(pixels)} tiles for {len(tokens)} runs of image tokens, of "
            f"{', '.join(map(str, tokens))} tokens: not the same number of tokens for each tile"
        )
    return tiles_by_tokens({"pixel_values": pixels}, tokens, each)


def _grid_places(
    model: Any, given: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Int[Tensor, "patches values"], tuple[int, int]]]:
    """For each image its patches, where their values stand in a frame, and the frame's size."""
    pixels, grids = given["pixel_values"], given["image_grid_thw"].tolist()
    vision = getattr(model.config, "vision_config", None)
    side: Any = getattr(vision, "patch_size", None)
    side = side[0] if isinstance(side, list | tuple) else side
    counts = [t * h * w for t, h, w in grids]
    values = pixels[0].numel()
    if not isinstance(side, int) or sum(counts) != len(pixels) or values % (3 * side * side):
        raise UnmatchedPixelsError(
            f"pixel_values has shape {tuple(pixels.shape)}, not a row for each of {sum(counts)} "
            f"patches with the values of 3 colours in squares of {side} pixels"
        )
    merged: Any = given.get("image_merge_sizes")
    if merged is None:
        merged = [getattr(vision, "spatial_merge_size", None) or 1] * len(grids)
    for patches, (frames, high, wide), one in zip(pixels.split(counts), grids, merged, strict=True):
        size = high * side, wide * side
        places = patch_places(
            model.config.model_type,
            height=size[0],
            width=size[1],
            side=side,
            merged=int(one),
            frames=values // (3 * side * side),
        )
        yield patches.reshape(frames, -1, values), places.to(pixels.device), size


def _of_grids(model: Any, given: Mapping[str, Any], tokens: Sequence[int]) -> list[Tensor]:
    """The pictures of images that come as rows of patches."""
    if len(given["image_grid_thw"]) != len(tokens):
        raise UnmatchedPixelsError(
            f"image_grid_thw has {len(given['image_grid_thw'])} images, the prompts have "
            f"{len(tokens)} runs of image tokens"
        )
    images = []
    for patches, places, (height, width) in _grid_places(model, given):
        whole = patches.new_empty(len(patches), 3 * height * width)
        index = places.flatten().expand(len(patches), -1)
        whole = whole.scatter(1, index, patches.flatten(1))
        if not whole.gather(1, index).equal(patches.flatten(1)):
            raise UnmatchedPixelsError("the frames of a patch differ, as those of a video do")
        images.append(whole.view(-1, 3, height, width))
    return images


def _joined_grids(model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """The inverse of `_of_grids`."""
    parts = [
        image.flatten(1)[:, places.flatten()]
        for image, (_, places, _) in zip(images, _grid_places(model, given), strict=True)
    ]
    return torch.cat([part.flatten() for part in parts]).view_as(given["pixel_values"])


def _padded(given: Mapping[str, Any]) -> bool:
    """Whether images of the sizes in `image_sizes` are padded with zeros on the right and below."""
    pixels, sizes = given["pixel_values"], given.get("image_sizes")
    if sizes is None or len(sizes) != len(pixels):
        return False
    whole = tuple(pixels.shape[-2:])
    for entry, (height, width) in zip(pixels, sizes, strict=True):
        inside = int(height) <= whole[0] and int(width) <= whole[1]
        if not inside or entry[:, int(height) :].any() or entry[:, :, int(width) :].any():
            return False
    return True

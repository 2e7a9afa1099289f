"""A tiny random model of each family and two prompts for it, no processor needed.

Prompt 1 has the longer question and, where the family takes images of any size, a larger or smaller
image than prompt 0. A prompt's inputs are the same alone and beside the other one.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from cdkit.interfaces.model_adapter import ADAPTERS

PAD, BOS, EOS, VOCAB, THETA = 0, 1, 2, 100, 50.0
IMAGE, VIDEO, START, END, NEWLINE, TAG = 90, 91, 92, 93, 94, 95
"""The special tokens of every family here; TAG and what follows tell rows, columns and tiles."""
QUESTIONS = ((20, 21, 22, 23), (24, 25, 26, 27, 28, 29))
HEAD_DIM = 8

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How to make a model, and each of its two prompts."""

    model_type: str
    config: Callable[[], dict[str, Any]]
    prompt: Callable[[int], tuple[list[int], Inputs]]
    """The tokens of a prompt, and what belongs to its image."""
    types: str | None = None
    """The argument that says 1 for an image token, 0 for text."""
    typed: tuple[int, ...] = (IMAGE,)
    """The tokens of which it says 1."""
    prefix_types: bool = False
    """The argument that says 0 for all tokens of a prompt."""
    dtype: torch.dtype = torch.float64


class Words:
    """A tokenizer for any words, and a processor for those who ask it for its tokenizers."""

    bos_token_id = BOS

    @property
    def qformer_tokenizer(self) -> "Words":
        return self

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [3 + sum(map(ord, word)) % 40 for word in text.split()]}


@functools.cache
def tiny(name: str) -> Any:
    """The model, made once."""
    return made(FAMILIES[name])


def made(family: Family) -> Any:
    """A new model; its answers never end."""
    ADAPTERS.load()  # which may tell the Auto classes of their families
    untied = {"tie_word_embeddings": False}
    config = AutoConfig.for_model(family.model_type, **untied | family.config())
    auto: Any = AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        _randomise(model)
    for owner in (model, getattr(model, "language_model", model)):  # whose generate runs
        how = getattr(owner, "generation_config", None) or model.generation_config
        how.eos_token_id, how.pad_token_id = None, PAD
    return model.to(family.dtype)


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Attention that prefers, tokens that differ; nothing stays 0 or 1."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or bool((weight == weight.flatten()[0]).all()):
            weight.add_(torch.randn_like(weight) * 0.1)
            continue
        gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")) else 1.0
        embeds = "embed_tokens" in name or "position_embedding" in name
        weight.normal_(std=gain / (1 if embeds else weight[0].numel() ** 0.5))


def inputs(name: str, *rows: int) -> Inputs:
    """The arguments of `generate` for these prompts."""
    return laid_out(FAMILIES[name], *rows)


def laid_out(family: Family, *rows: int) -> Inputs:
    """Its prompts below each other: text padded on the left, the rest behind."""
    prompts = [family.prompt(row) for row in rows]
    given = _stacked([{"input_ids": torch.tensor([ids])} for ids, _ in prompts], left=True)
    given |= _stacked(
        [{"attention_mask": torch.ones(1, len(p[0])).long()} for p in prompts], left=True
    )
    if family.types is not None:
        of_image = torch.isin(given["input_ids"], torch.tensor(family.typed))
        given[family.types] = of_image.long() * (not family.prefix_types)
    images = of_pictures([image for _, image in prompts])
    for name in {"pixel_values", "image_pixel_values"} & images.keys():
        images[name] = images[name].to(family.dtype)
    return given | images


def of_pictures(each: list[Inputs]) -> Inputs:
    """What belongs to several pictures, from what belongs to each of them."""
    images = _stacked(each, left=False)
    if "image_attention_mask" in images:  # what fills up is no padding of a crop
        crops = 1 + images["image_sizes"].prod(dim=-1) // 64
        filled = torch.arange(images["image_attention_mask"].shape[1]) >= crops[:, None]
        images["image_attention_mask"] = images["image_attention_mask"].masked_fill(
            filled[..., None, None], 1
        )
    if "image_num_crops" in images:  # patches are counted over all pictures
        sizes = [len(own["image_token_pooling"]) for own in each]
        patches = torch.tensor([own["pixel_values"].shape[:2].numel() for own in each])
        before = (patches.cumsum(0) - patches).repeat_interleave(torch.tensor(sizes))
        images["image_token_pooling"] = images["image_token_pooling"] + before[:, None]
    return images


def _stacked(parts: list[Inputs], *, left: bool) -> Inputs:
    """Below each other, each with zeros up to the largest of them."""
    whole = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        sizes = [max(size) for size in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        padded = []
        for tensor in tensors:
            gaps = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
            sides = [side for gap in gaps[::-1] for side in ((gap, 0) if left else (0, gap))]
            padded.append(torch.nn.functional.pad(tensor, sides))
        whole[name] = torch.cat(padded)
    return whole


# ---- parts of the recipes ------------------------------------------------------------------------


SMALL_TEXT: Mapping[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": None,
}  # fmt: skip
"""Of any decoder."""


def text(model_type: str, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": THETA}
    own = {"model_type": model_type, "head_dim": HEAD_DIM, "rope_parameters": rope}
    return {**SMALL_TEXT, **own, **more}


def vision(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2, **more,
    }  # fmt: skip


def pixels(row: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(row + 1)).double()


def around(row: int, *image: int) -> list[int]:
    return [BOS, 10, 11, *image, *QUESTIONS[row]]


def square(tokens: int, *marks: int) -> Callable[[int], tuple[list[int], Inputs]]:
    """Prompts with one picture of a fixed number of tokens, between these marks."""

    def prompt(row: int) -> tuple[list[int], Inputs]:
        image = [*marks[:1], *[IMAGE] * tokens, *marks[1:]]
        return around(row, *image), {"pixel_values": pixels(row, 1, 3, 8, 8)}

    return prompt


def broken_rows(height: int, width: int) -> list[int]:
    """Rows of image tokens with a break after each, and an end after the last."""
    rows = [token for _ in range(height) for token in (*[IMAGE] * width, NEWLINE)]
    return [*rows[:-1], END]


# ---- LLaVA and its kin ---------------------------------------------------------------------------


def _llava(tower: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {
        "text_config": text("llama"), "vision_config": vision(tower), "image_token_index": IMAGE,
        "vision_feature_layer": -1, "vision_feature_select_strategy": strategy, **more,
    }  # fmt: skip


def _pixtral(**more: Any) -> dict[str, Any]:
    of_text = text("mistral", sliding_window=None)
    tower = vision("pixtral", image_size=16, num_channels=3, head_dim=HEAD_DIM)
    return _llava("pixtral", "full", text_config=of_text, vision_config=tower) | more


def _of_any_size(merge: int) -> Callable[[int], tuple[list[int], Inputs]]:
    """Pictures of two token rows or two token columns."""

    def prompt(row: int) -> tuple[list[int], Inputs]:
        height, width = ((2, 4), (4, 2))[row]
        size = (2 * merge * height, 2 * merge * width)
        image = {"pixel_values": pixels(row, 1, 3, *size), "image_sizes": torch.tensor([size])}
        return around(row, *broken_rows(height, width)), image

    return prompt


def _tiled(model_type: str) -> dict[str, Any]:
    siglip = model_type == "llava_onevision"
    more = {} if model_type == "llava_next" else {"video_token_index": VIDEO}
    kinds = {"llava_onevision": "qwen2", "llava_next": "mistral"}
    decoder = {"sliding_window": None} if model_type in kinds else {}
    return {
        "text_config": text(kinds.get(model_type, "llama"), **decoder),
        "vision_config": vision("siglip_vision_model" if siglip else "clip_vision_model"),
        "image_token_index": IMAGE, "image_grid_pinpoints": [[8, 16], [16, 8], [16, 16]],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full" if siglip else "default", **more,
    }  # fmt: skip


def _tiles_with_newlines(row: int) -> tuple[list[int], Inputs]:
    """The whole picture, then its tiles of 1 x 2 or 2 x 2 with a newline feature a row."""
    size, tiles, tokens = (((8, 16), 3, 16 + 4 * 8 + 4), ((16, 16), 5, 16 + 8 * 8 + 8))[row]
    image = {"pixel_values": pixels(row, 1, tiles, 3, 8, 8), "image_sizes": torch.tensor([size])}
    return around(row, *[IMAGE] * tokens), image


def _granite4_vision() -> dict[str, Any]:
    """Features of two encoder layers, and of the last one at four offsets, into five layers."""
    more: dict[str, Any] = {
        "num_hidden_layers": 5, "embedding_multiplier": 3.0, "logits_scaling": 0.5,
        "residual_multiplier": 0.7, "attention_multiplier": 0.3,
    }  # fmt: skip
    of_text = text("granite4_vision_text", **more)
    del of_text["head_dim"]
    qformer = {
        "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 32,
        "cross_attention_frequency": 1, "use_qformer_text_input": False,
    }  # fmt: skip
    return _tiled("llava_onevision") | {
        "text_config": of_text, "qformer_config": qformer, "downsample_rate": "1/2",
        # a head of its Q-Former has 64 dimensions
        "vision_config": vision("siglip_vision_model", hidden_size=64),
        "deepstack_layer_map": [[-1, 1], [-2, 4]], "spatial_target_layers": [0, 2, 3, 4],
        "projector_dropout": 0.0,
    }  # fmt: skip


def _smaller_tiles_with_newlines(row: int) -> tuple[list[int], Inputs]:
    _, image = _tiles_with_newlines(row)
    return around(row, *[IMAGE] * (4 + (2 * 4 + 2, 4 * 4 + 4)[row])), image


def _internvl() -> dict[str, Any]:
    tower = vision("internvl_vision", image_size=[8, 8], patch_size=[2, 2])
    of_text = text("qwen2")
    return {
        "text_config": of_text, "vision_config": tower, "image_token_id": IMAGE,
        "downsample_ratio": 0.5,
    }  # fmt: skip


def _tiles_side_by_side(row: int) -> tuple[list[int], Inputs]:
    tiles = (2, 1)[row]
    image = {"pixel_values": pixels(row, tiles, 3, 8, 8)}
    return around(row, START, *[IMAGE] * 4 * tiles, END), image


def _aya_vision() -> dict[str, Any]:
    """Three layers with a window and one without, which has no rotary embedding either."""
    return {
        "text_config": text("cohere2", sliding_window=64, num_hidden_layers=4),
        "vision_config": vision("siglip_vision_model"), "image_token_index": IMAGE,
        "downsample_factor": 2, "vision_feature_layer": -1,
    }  # fmt: skip


def _tagged_tiles(row: int) -> tuple[list[int], Inputs]:
    tiles = (2, 1)[row]
    image = [token for tile in range(tiles) for token in (TAG + tile, *[IMAGE] * 4)]
    return around(row, START, *image, END), {"pixel_values": pixels(row, tiles, 3, 8, 8)}


def _ovis2() -> dict[str, Any]:
    return {
        "text_config": text("qwen2"), "image_token_id": IMAGE, "hidden_size": 32,
        "vision_config": vision("ovis2_vision", vocab_size=40, hidden_stride=2),
        "visual_indicator_token_ids": [92, 93, 94, 95, 96], "vocab_size": VOCAB,
    }  # fmt: skip


def _indicated_tiles(row: int) -> tuple[list[int], Inputs]:
    """Between the five tokens that get features of their own."""
    tile = [IMAGE] * 4
    image = ([92, *tile, 93, *tile, 94, *tile, 96], [92, *tile, 93, 96])[row]
    return around(row, *image), {"pixel_values": pixels(row, (3, 1)[row], 3, 8, 8)}


def _deepseek_vl() -> dict[str, Any]:
    return {
        "text_config": text("llama"), "vision_config": vision("siglip_vision_model"),
        "image_token_id": IMAGE,
    }  # fmt: skip


def _janus() -> dict[str, Any]:
    codes = {
        "embed_dim": 4, "num_embeddings": 20, "latent_channels": 8, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4, "projection_dim": 32,
        "image_token_embed_dim": 32,
    }  # fmt: skip
    sizes = {"num_image_tokens": 16, "projection_dim": 32, "depth": 2, "mlp_ratio": 2}
    return {
        "text_config": text("llama"), "vq_config": codes, "image_token_id": IMAGE,
        "vision_config": vision("janus_vision_model", **sizes),
    }  # fmt: skip


# ---- Idefics -------------------------------------------------------------------------------------


def _idefics3(model_type: str) -> dict[str, Any]:
    return {
        "text_config": text("llama"), "vision_config": vision(f"{model_type}_vision"),
        "image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD,
    }  # fmt: skip


def _split_or_whole(row: int) -> tuple[list[int], Inputs]:
    """Two tiles and the whole picture, or the whole picture alone."""
    part = [IMAGE] * 4
    whole = [START, TAG + 2, *part, START]
    image = ([START, TAG, *part, START, TAG + 1, *part, NEWLINE, *whole], whole)[row]
    return around(row, *image), _seen(row, (3, 1)[row])


def _seen(row: int, count: int) -> Inputs:
    mask = torch.ones(1, count, 8, 8, dtype=torch.long)
    return {"pixel_values": pixels(row, 1, count, 3, 8, 8), "pixel_attention_mask": mask}


def _idefics2() -> dict[str, Any]:
    resampler = {
        "hidden_size": 32, "resampler_n_latents": 12, "resampler_depth": 1,
        "resampler_n_heads": 2, "resampler_head_dim": HEAD_DIM, "num_key_value_heads": 1,
    }  # fmt: skip
    return {
        "text_config": text("mistral", sliding_window=None), "image_token_id": IMAGE,
        "vision_config": vision("idefics2_vision"), "perceiver_config": resampler,
    }  # fmt: skip


def _latents(row: int) -> tuple[list[int], Inputs]:
    return around(row, START, *[IMAGE] * 12, START), _seen(row, 1)


# ---- Gemma ---------------------------------------------------------------------------------------


def _gemma3() -> dict[str, Any]:
    """A window that no prompt here reaches."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        "full_attention": {"rope_type": "default", "rope_theta": THETA},
    }
    of_text = text(
        "gemma3_text", query_pre_attn_scalar=8, sliding_window=64, layer_types=kinds,
        rope_parameters=rope,
    )  # fmt: skip
    return {
        "text_config": of_text, "mm_tokens_per_image": 16, "image_token_index": IMAGE,
        "vision_config": vision("siglip_vision_model", vision_use_head=False),
        "boi_token_index": START, "eoi_token_index": END,
    }  # fmt: skip


def _gemma4() -> dict[str, Any]:
    """Full layers turn half of each head; the others see images both ways."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    rope: dict[str, dict[str, Any]] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        "full_attention": {
            "rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": THETA,
        },
    }  # fmt: skip
    of_text = text(
        "gemma4_text", sliding_window=64, layer_types=kinds, rope_parameters=rope,
        hidden_size_per_layer_input=0, num_kv_shared_layers=0, global_head_dim=HEAD_DIM,
        per_layer_config={}, use_bidirectional_attention="vision", final_logit_softcapping=20.0,
    )  # fmt: skip
    tower = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "pooling_kernel_size": 2, "patch_size": 2, "position_embedding_size": 16,
    }  # fmt: skip
    return {
        "text_config": of_text, "vision_config": tower, "audio_config": None,
        "boi_token_id": START, "eoi_token_id": END, "image_token_id": IMAGE,
        "video_token_id": VIDEO, "audio_token_id": 96, "boa_token_id": 97, "eoa_token_index": 98,
    }  # fmt: skip


def _gemma4_small() -> dict[str, Any]:
    """As E2B: inputs for each layer, and two layers that use the keys of layers below them."""
    config = _gemma4()
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config["text_config"] |= {
        "num_hidden_layers": 5, "layer_types": [*kinds, *kinds[:2]], "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": VOCAB,
        "use_double_wide_mlp": True, "use_bidirectional_attention": None,
    }  # fmt: skip
    return config


def _gemma4_unified() -> dict[str, Any]:
    config = _gemma4()
    kinds = ["sliding_attention", "full_attention"]
    config["text_config"] |= {
        "model_type": "gemma4_unified_text", "num_hidden_layers": 4, "layer_types": kinds * 2,
        "num_kv_shared_layers": 1,
    }  # fmt: skip
    config["vision_config"] = {
        "patch_size": 2, "pooling_kernel_size": 1, "mm_embed_dim": 32, "mm_posemb_size": 16,
        "output_proj_dims": 32,
    }  # fmt: skip
    return config


def _placed_patches(row: int) -> tuple[list[int], Inputs]:
    """Patches with a place each; the second picture has fewer, and is filled up."""
    height, width = ((4, 6), (4, 4))[row]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    missing = 24 - len(places)
    image = {
        "pixel_values": torch.nn.functional.pad(
            pixels(row, 1, len(places), 12), (0, 0, 0, missing)
        ),
        "image_position_ids": torch.nn.functional.pad(places, (0, 0, 0, missing), value=-1)[None],
    }
    return around(row, START, *[IMAGE] * (len(places) // 4), END), image


def _single_patches(row: int) -> tuple[list[int], Inputs]:
    """A token for each patch."""
    height, width = ((2, 4), (2, 3))[row]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    missing = 8 - len(places)
    image = {
        "pixel_values": torch.nn.functional.pad(
            pixels(row, 1, len(places), 12), (0, 0, 0, missing)
        ),
        "image_position_ids": torch.nn.functional.pad(places, (0, 0, 0, missing), value=-1)[None],
    }
    return around(row, START, *[IMAGE] * len(places), END), image


def _molmo2() -> dict[str, Any]:
    """Every second layer turns by frequencies that are not scaled."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": THETA}
    of_text = text(
        "molmo2_text", additional_vocab_size=8, rope_scaling_layers=[0, 2], rope_parameters=rope
    )
    tower = vision(
        "molmo2_vision", image_size=[8, 8], num_key_value_heads=2, head_dim=8,
        num_position_embeddings=16,
    )  # fmt: skip
    pooling = {
        "vision_feature_layer": [-1], "hidden_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "text_hidden_size": 32,
    }  # fmt: skip
    return {
        "text_config": of_text, "vision_config": tower, "adapter_config": pooling,
        "image_start_token_id": START, "image_end_token_id": END, "image_patch_id": IMAGE,
        "low_res_image_start_token_id": TAG, "frame_start_token_id": 96, "frame_end_token_id": 97,
    }  # fmt: skip


def _low_and_high(row: int) -> tuple[list[int], Inputs]:
    """The whole picture, pooled to 2 x 2, then one crop or two of as many tokens."""
    crops = (1, 2)[row]
    whole, *cut = torch.arange(16 * (1 + crops)).view(1 + crops, 4, 4)
    patches = [
        picture.view(2, 2, -1, 2).transpose(1, 2).reshape(-1, 4)
        for picture in (whole, torch.cat(cut, dim=1))
    ]
    low = [TAG, *[IMAGE, IMAGE, NEWLINE] * 2, END]
    high = [START, *[*[IMAGE] * 2 * crops, NEWLINE] * 2, END]
    return around(row, *low, *high), {
        "pixel_values": pixels(row, 1 + crops, 16, 12),
        "image_token_pooling": torch.cat(patches),
        "image_grids": torch.tensor([[2, 2, 2, 2 * crops]]),
        "image_num_crops": torch.tensor([1 + crops]),
    }


def _phi4_multimodal() -> dict[str, Any]:
    """Three quarters of each head turn, by frequencies that change after 512 tokens."""
    rope = {
        "rope_type": "longrope", "rope_theta": THETA, "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 2.0, 4.0],
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "input_size": 16,
        "nemo_conv_channels": 16, "audio_token_id": 96,
    }  # fmt: skip
    tower = vision("phi4_multimodal_vision", crop_size=8, image_token_id=IMAGE)
    return {
        **SMALL_TEXT,
        "rope_parameters": rope, "max_position_embeddings": 1024,
        "original_max_position_embeddings": 512, "vision_config": tower, "audio_config": audio,
    }  # fmt: skip


def _crops(row: int) -> tuple[list[int], Inputs]:
    """One crop with a row of padding, or two with two columns of it; then the whole picture.

    Each has padding, as the stock encoder reads pictures otherwise where none has.
    """
    crops, tokens = ((1, 6), (2, 8))[row]
    mask = torch.ones(1, 1 + crops, 4, 4, dtype=torch.long)
    mask[:, 1 if row == 0 else 2, 3 * (row == 0) :, 2 * row :] = 0
    return around(row, *[IMAGE] * (tokens + 1 + 6)), {
        "image_pixel_values": pixels(row, 1, 1 + crops, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8 * crops]]),
        "image_attention_mask": mask,
    }


def _between_newlines(row: int) -> tuple[list[int], Inputs]:
    image = [NEWLINE, START, *[IMAGE] * 16, END, NEWLINE]
    return around(row, *image), {"pixel_values": pixels(row, 1, 3, 8, 8)}


def _paligemma() -> dict[str, Any]:
    tower = vision("siglip_vision_model", vision_use_head=False, projection_dim=32)
    return {
        "text_config": text("gemma"), "vision_config": tower, "projection_dim": 32,
        "hidden_size": 32, "image_token_index": IMAGE, "vocab_size": VOCAB,
    }  # fmt: skip


def _image_first(row: int) -> tuple[list[int], Inputs]:
    ids = [*[IMAGE] * 16, BOS, *QUESTIONS[row], NEWLINE]
    return ids, {"pixel_values": pixels(row, 1, 3, 8, 8)}


# ---- grids of patches ----------------------------------------------------------------------------


def _grid(model_type: str) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": [2, 1, 1]}
    of_text = text(model_type, rope_parameters=rope)
    del of_text["model_type"]  # the family's own
    some = {"depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2}
    wide = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, **some}
    towers: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, **some},
        "qwen2_5_vl": {"window_size": 8, "fullatt_block_indexes": [1], **wide},
        "glm4v": {"image_size": 8, **wide},
    }
    deep = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], **wide}
    if model_type.endswith("moe"):
        of_text |= {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    if not model_type.startswith("qwen3"):
        del of_text["head_dim"]
    if model_type.startswith("qwen3_5"):
        rope["partial_rotary_factor"] = 1.0
        of_text |= {
            "layer_types": ["linear_attention", "full_attention", "full_attention"],
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 16,
        }  # fmt: skip
        del deep["deepstack_visual_indexes"]
    if model_type == "glm4v":
        rope |= {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
    mark = "image" if model_type == "glm4v" else "vision"
    return {
        "text_config": of_text, "vision_config": towers.get(model_type, deep),
        "image_token_id": IMAGE, "video_token_id": VIDEO,
        f"{mark}_start_token_id": START, f"{mark}_end_token_id": END,
    }  # fmt: skip


def _patches(row: int) -> tuple[list[int], Inputs]:
    """A still picture: both frames of a patch are alike."""
    grid = ((1, 4, 6), (1, 8, 4))[row]
    count = grid[1] * grid[2]
    still = pixels(row, count, 3, 1, 2, 2).expand(-1, -1, 2, -1, -1).flatten(1)
    image = {"pixel_values": still, "image_grid_thw": torch.tensor([grid])}
    return around(row, START, *[IMAGE] * (count // 4), END), image


# ---- BLIP ----------------------------------------------------------------------------------------


def _instructblip() -> dict[str, Any]:
    queries = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "encoder_hidden_size": 16, "cross_attention_frequency": 1,
    }  # fmt: skip
    return {
        "text_config": text("llama"), "vision_config": vision("instructblip_vision_model"),
        "qformer_config": queries, "num_query_tokens": 12, "image_token_index": IMAGE,
    }  # fmt: skip


def _queries(row: int) -> tuple[list[int], Inputs]:
    """The question twice: for the decoder, and for the encoder that reads it."""
    asked = torch.tensor([[40, *QUESTIONS[row]]])
    return [*[IMAGE] * 12, BOS, *QUESTIONS[row]], {
        "pixel_values": pixels(row, 1, 3, 8, 8),
        "qformer_input_ids": asked,
        "qformer_attention_mask": torch.ones_like(asked),
    }


def _grid_family(model_type: str, dtype: torch.dtype = torch.float64) -> Family:
    config = functools.partial(_grid, model_type)
    return Family(model_type, config, _patches, types="mm_token_type_ids", dtype=dtype)


FAMILIES: Mapping[str, Family] = {
    "llava": Family("llava", lambda: _llava("clip_vision_model", "default"), square(16)),
    "llava-siglip": Family("llava", lambda: _llava("siglip_vision_model", "full"), square(16)),
    "llava-pixtral": Family("llava", _pixtral, _of_any_size(1)),
    "vipllava": Family(
        "vipllava",
        lambda: {
            "text_config": text("llama"),
            "vision_config": vision("clip_vision_model"),
            "image_token_index": IMAGE,
            "vision_feature_layer": [-1, -2],
        },
        square(16),
    ),
    "llava_next": Family("llava_next", lambda: _tiled("llava_next"), _tiles_with_newlines),
    "llava_onevision": Family(
        "llava_onevision", lambda: _tiled("llava_onevision"), _tiles_with_newlines
    ),
    "llava_next_video": Family(
        "llava_next_video", lambda: _tiled("llava_next_video"), _tiles_with_newlines
    ),
    "video_llava": Family(
        "video_llava",
        lambda: _llava("clip_vision_model", "default", video_token_index=VIDEO),
        square(16),
    ),
    "granite4_vision": Family("granite4_vision", _granite4_vision, _smaller_tiles_with_newlines),
    "mistral3": Family("mistral3", lambda: _pixtral(spatial_merge_size=2), _of_any_size(2)),
    "internvl": Family("internvl", _internvl, _tiles_side_by_side),
    "aya_vision": Family("aya_vision", _aya_vision, _tagged_tiles),
    "ovis2": Family("ovis2", _ovis2, _indicated_tiles),
    "deepseek_vl": Family("deepseek_vl", _deepseek_vl, square(16)),
    "janus": Family("janus", _janus, square(16, START, END)),
    "idefics2": Family("idefics2", _idefics2, _latents),
    "idefics3": Family("idefics3", lambda: _idefics3("idefics3"), _split_or_whole),
    "smolvlm": Family("smolvlm", lambda: _idefics3("smolvlm"), _split_or_whole),
    "gemma3": Family("gemma3", _gemma3, _between_newlines, types="token_type_ids"),
    "gemma4": Family("gemma4", _gemma4, _placed_patches, types="mm_token_type_ids"),
    "gemma4-small": Family("gemma4", _gemma4_small, _placed_patches, types="mm_token_type_ids"),
    "gemma4_unified": Family(
        "gemma4_unified", _gemma4_unified, _single_patches, types="mm_token_type_ids"
    ),
    "molmo2": Family(
        "molmo2",
        _molmo2,
        _low_and_high,
        types="mm_token_type_ids",
        typed=(IMAGE, TAG, NEWLINE, START, END),
    ),
    "phi4_multimodal": Family("phi4_multimodal", _phi4_multimodal, _crops),
    "shieldgemma2": Family("shieldgemma2", _gemma3, _between_newlines, types="token_type_ids"),
    "paligemma": Family(
        "paligemma", _paligemma, _image_first, types="token_type_ids", prefix_types=True
    ),
    "qwen2_vl": _grid_family("qwen2_vl"),
    "qwen2_5_vl": _grid_family("qwen2_5_vl"),
    "qwen3_vl": _grid_family("qwen3_vl"),
    "qwen3_vl_moe": _grid_family("qwen3_vl_moe", torch.float32),  # its experts refuse float64
    "glm4v": _grid_family("glm4v"),
    "qwen3_5": _grid_family("qwen3_5"),
    "qwen3_5_moe": _grid_family("qwen3_5_moe", torch.float32),
    "instructblip": Family("instructblip", _instructblip, _queries),
}

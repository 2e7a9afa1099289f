"""Tiny random models of Idefics, Gemma and InstructBLIP, and prompts for them."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor

from .tiny import SMALL_TEXT

hf: Any = transformers  # much of it is not typed
PAD, BOS = 0, 1
IMAGE, START, END, NEWLINE, TAG = 90, 92, 93, 94, 95
"""START is the bracket of Idefics as well; tags are TAG, TAG + 1, ..."""
SIDE = 12
"""Of the tiles of Idefics; images of the others have 8."""
CLS, SEP = 40, 41
"""Of the Q-Former's tokenizer."""
EACH = {
    "idefics3": 9, "smolvlm": 9, "idefics2": 12, "gemma3": 16, "paligemma": 16, "paligemma2": 16,
    "instructblip": 12,
}  # fmt: skip
"""Tokens of an image, or of a tile."""
FAMILIES = ("idefics3", "smolvlm", "idefics2", "gemma3", "paligemma")


@dataclass(frozen=True)
class Prompt:
    """`tiles` of each image; the question."""

    tiles: tuple[int, ...]
    question: tuple[int, ...]


ONE = Prompt((1,), (20, 21, 22, 23))
TILES = Prompt((5, 1), (24, 25, 26, 27, 28, 29))
"""Two images, with nothing between where the family has marks; the first has four and the whole."""
MORE = Prompt((1,), (24, 25, 26, 27, 28, 29))


def pair(name: str) -> tuple[Prompt, Prompt]:
    """Two prompts of unequal length, with unequal images where the family takes several."""
    return ONE, MORE if name == "instructblip" else TILES


@functools.cache
def tiny(name: str, decoder: str = "", window: int = 200) -> Any:
    """A random model with attention that prefers; its answers never end."""
    config = hf.AutoConfig.for_model(name.rstrip("2") if "gemma" in name else name, **_of(name))
    if decoder or window != 200:
        config = hf.AutoConfig.for_model(config.model_type, **_of(name, decoder, window))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = hf.AutoModelForImageTextToText.from_config(config).eval()
        _randomise(model)
    for own in (model, getattr(model, "language_model", model)):
        own.generation_config.eos_token_id = None
        own.generation_config.pad_token_id = PAD
    return model.double()


def _of(name: str, decoder: str = "", window: int = 200) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "patch_size": 2,
        "num_attention_heads": 2, "image_size": 8,
    }  # fmt: skip
    siglip = vision | {"model_type": "siglip_vision_model", "vision_use_head": False}
    match name:
        case "idefics3" | "smolvlm":
            return {
                "text_config": _text("llama"),
                "vision_config": vision | {"model_type": f"{name}_vision", "image_size": SIDE},
                "image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD,
            }  # fmt: skip
        case "idefics2":
            perceiver = {
                "hidden_size": 32, "resampler_n_latents": EACH[name], "resampler_depth": 1,
                "resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1,
            }  # fmt: skip
            return {
                "text_config": _text("mistral", sliding_window=None),
                "vision_config": vision | {"model_type": "idefics2_vision"},
                "perceiver_config": perceiver, "image_token_id": IMAGE,
            }  # fmt: skip
        case "gemma3":
            rope = {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            }
            kinds = ["sliding_attention", "full_attention", "sliding_attention"]
            text = _text(
                "gemma3_text", head_dim=8, query_pre_attn_scalar=5, sliding_window=window,
                layer_types=kinds, rope_parameters=rope,
            )  # fmt: skip
            return {
                "text_config": text, "vision_config": siglip, "mm_tokens_per_image": EACH[name],
                "image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END,
            }  # fmt: skip
        case "paligemma" | "paligemma2":
            more = {"query_pre_attn_scalar": 8, "sliding_window": 200}
            two = name == "paligemma2"
            text = _text("gemma2" if two else "gemma", head_dim=8, **(more if two else {}))
            return {
                "text_config": text, "vision_config": siglip | {"projection_dim": 32},
                "projection_dim": 32, "hidden_size": 32, "image_token_index": IMAGE,
                "vocab_size": 100,
            }  # fmt: skip
    former = {
        "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "encoder_hidden_size": 16, "cross_attention_frequency": 1,
    }  # fmt: skip
    own: dict[str, Any] = {
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "t5": {
            "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": PAD, "is_encoder_decoder": True,
        },
    }.get(decoder, {})  # fmt: skip
    return {
        "text_config": _text(decoder or "llama", **own), "qformer_config": former,
        "vision_config": vision | {"model_type": "instructblip_vision_model"},
        "num_query_tokens": EACH[name], "image_token_index": IMAGE,
    }  # fmt: skip


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return {**SMALL_TEXT, "model_type": model_type, **more}


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.add_(torch.randn_like(weight) * 0.1)
            continue
        gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")) else 1.0
        width = 1 if "embed" in name and "patch" not in name else weight[0].numel()
        weight.normal_(std=gain / max(width, 1) ** 0.5)


def inputs(name: str, *prompts: Prompt) -> dict[str, Tensor]:
    """The arguments of `generate`, left-padded. A prompt is the same in every batch."""
    pixels = [_pixels(name, prompt) for prompt in prompts]
    given = of_ids(name, [ids_of(name, prompt) for prompt in prompts])
    if name.startswith(("idefics", "smol")):
        most = max(map(len, pixels))
        spare = [(0, 0, 0, 0, 0, 0, 0, most - len(own)) for own in pixels]
        full = [torch.nn.functional.pad(x, by) for x, by in zip(pixels, spare, strict=True)]
        given["pixel_values"] = torch.stack(full)
        given["pixel_attention_mask"] = (given["pixel_values"] != 0).any(dim=2).long()
    else:
        given["pixel_values"] = torch.cat(pixels)
    if name == "instructblip":
        asked = [[CLS, *prompt.question, SEP] for prompt in prompts]
        given |= of_questions(asked)
    return given


def of_ids(name: str, rows: list[list[int]]) -> dict[str, Tensor]:
    """What depends on the ids alone."""
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    given = {"input_ids": ids, "attention_mask": mask}
    if name == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).long()
    if name.startswith("paligemma"):
        given["token_type_ids"] = torch.zeros_like(ids)
    return given


def of_questions(rows: list[list[int]]) -> dict[str, Tensor]:
    """The Q-Former's ids, padded on the right."""
    length = max(map(len, rows))
    return {
        "qformer_input_ids": torch.tensor([row + [PAD] * (length - len(row)) for row in rows]),
        "qformer_attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        ),
    }


def ids_of(name: str, prompt: Prompt) -> list[int]:
    tokens, question = [IMAGE] * EACH[name], list(prompt.question)
    match name:
        case "paligemma" | "paligemma2":
            return [*tokens * len(prompt.tiles), BOS, *question, NEWLINE]
        case "instructblip":
            return [*tokens, BOS, *question]
        case "gemma3":
            images = [NEWLINE, START, *tokens, END, NEWLINE] * len(prompt.tiles)
        case "idefics2":
            each = [[START, *[*tokens, START] * tiles] for tiles in prompt.tiles]
            images = [token for image in each for token in (*image, 12)]
        case _:
            images = [token for tiles in prompt.tiles for token in _tagged(tokens, tiles)]
    return [BOS, 10, *images, *question]


def _tagged(tokens: list[int], tiles: int) -> list[int]:
    """Rows of one tile each, then the whole picture."""
    rows = [[START, TAG + row, *tokens, NEWLINE] for row in range(tiles - 1)]
    whole = [*([NEWLINE] if rows else []), START, TAG + 4, *tokens, START]
    return [token for row in (*rows, whole) for token in row]


def _pixels(name: str, prompt: Prompt) -> Tensor:
    """An entry a tile where the family has tiles, else one an image."""
    tiled = name.startswith(("idefics", "smol"))
    random = torch.Generator().manual_seed(sum(prompt.question))
    entries = sum(prompt.tiles) if tiled else len(prompt.tiles)
    side = SIDE if tiled else 8
    return torch.randn(entries, 3, side, side, generator=random, dtype=torch.float64)


class Words:
    """A tokenizer for distortions that write text: a word is a token. The Q-Former's has others."""

    bos_token_id = BOS

    def __init__(self, first: int = 30) -> None:
        self.first = first
        self.qformer_tokenizer = Words(60) if first == 30 else None

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [self.first + sum(map(ord, word)) % 20 for word in text.split()]}


def tokenizer(first: str = "<s>", marks: dict[int, str] | None = None, **named: str) -> Any:
    """Of words; `marks` are special tokens at their ids. Texts begin with `first`, id 1."""
    words = f"<pad> {first} </s> <unk> is there a cat in the image ? you are confused no yes"
    vocabulary = {word: i for i, word in enumerate(words.split())}
    marks = marks or {}
    vocabulary |= {marks.get(i, f"w{i}"): i for i in range(len(vocabulary), 90 + 10 * bool(marks))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, 1)]
    )
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token=first, unk_token="<unk>",
        padding_side="left", extra_special_tokens=named,
    )  # fmt: skip
    made.add_tokens(list(marks.values()), special_tokens=True)
    return made

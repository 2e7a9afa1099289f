"""The rows of a batch with branches: the original branch's rows, then each distorted branch's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.adapter import ModelAdapter
from cdkit.errors import CdkitError
from cdkit.layout import Layout, left_pad, make_layout
from cdkit.method import Branch
from cdkit.strategy import Prompt


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of one branch, or of all branches below each other."""

    embeds: Float[Tensor, "rows tokens hidden"]
    real: Bool[Tensor, "rows tokens"]
    image_index: Int[Tensor, "rows tokens"]
    positions: Int[Tensor, "rows tokens"]

    def padded_to(self, length: int) -> "PromptRows":
        return PromptRows(
            left_pad(self.embeds, length, 0),
            left_pad(self.real, length, False),
            left_pad(self.image_index, length, -1),
            left_pad(self.positions, length, 0),
        )


def stack(branches: Sequence[PromptRows]) -> tuple[PromptRows, Layout]:
    """All branches' rows, left-padded to one length, and their layout."""
    length = max(branch.real.shape[1] for branch in branches)
    wide = [branch.padded_to(length) for branch in branches]
    rows = PromptRows(
        torch.cat([branch.embeds for branch in wide]),
        torch.cat([branch.real for branch in wide]),
        torch.cat([branch.image_index for branch in wide]),
        torch.cat([branch.positions for branch in wide]),
    )
    return rows, make_layout(rows.image_index, rows.real)


def place_features(
    embeds: Float[Tensor, "rows tokens hidden"],
    image_index: Int[Tensor, "rows all_tokens"],
    features: Sequence[Float[Tensor, "_ hidden"]],
    *,
    start: int = 0,
) -> Float[Tensor, "rows tokens hidden"]:
    """The embeddings with each row's image features at its image tokens.

    `features` holds one tensor a row, all its images below each other; a row without image tokens
    takes none. `embeds` are the columns from `start` on of prompts that `image_index` describes.
    """
    is_image = image_index >= 0
    needed = is_image.sum(dim=-1).tolist()
    used = []
    for row, (count, tensor) in enumerate(zip(needed, features, strict=True)):
        if count not in (0, tensor.shape[0]):
            raise CdkitError(
                f"prompt {row} has {count} image tokens but its images have {tensor.shape[0]} "
                "features; a prompt distortion may take out all image tokens or none"
            )
        used.append(tensor[:count])
    source = torch.cat(used).to(device=embeds.device, dtype=embeds.dtype)
    everywhere = embeds.new_zeros((*image_index.shape, embeds.shape[-1]))
    placed = everywhere.masked_scatter(is_image[..., None], source)
    stop = start + embeds.shape[1]
    return torch.where(is_image[:, start:stop, None], placed[:, start:stop], embeds)


def features_of_rows(
    features: Sequence[Float[Tensor, "_ hidden"]], images: Sequence[int], expand: int
) -> list[Float[Tensor, "_ hidden"]]:
    """Features image by image -> one tensor a row, where each sample has `expand` rows."""
    rows, start = [], 0
    for count in images:
        stop = start + count
        own = features[start:stop]
        rows += [torch.cat(list(own)) if own else features[0][:0]] * expand
        start = stop
    return rows


def features_in(
    embeds: Float[Tensor, "rows tokens hidden"], image_index: Int[Tensor, "rows tokens"]
) -> list[Float[Tensor, "_ hidden"]]:
    """The image features that stand in each row's embeddings."""
    return [row[index >= 0] for row, index in zip(embeds, image_index, strict=True)]


def rewritten(
    original: PromptRows,
    ids: Int[Tensor, "rows tokens"],
    branch: Branch,
    *,
    model: nn.Module,
    adapter: ModelAdapter,
    expand: int,
    tokenizer: Any,
    features: Sequence[Float[Tensor, "_ hidden"]] | None,
) -> tuple[PromptRows, int]:
    """A branch whose prompts are distorted: its own tokens, its own padding, its own positions.

    Also how many last tokens of every prompt are those of the original one.
    """

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts: list[Prompt] = []
    aligned = ids.shape[1]
    for row in range(0, ids.shape[0], expand):
        real = original.real[row]
        is_image = (original.image_index[row][real] >= 0).tolist()
        tokens = ids[row][real].tolist()
        prompt = Prompt(
            ids=tuple(tokens),
            is_image=tuple(is_image),
            system_slot=adapter.system_slot(tokens, tokenizer),
            question_slot=len(is_image) - is_image[::-1].index(True) if any(is_image) else 0,
            encode=encode,
        )
        for distortion in branch.prompt:
            prompt = distortion.distort(prompt)
        if not prompt.ids:
            raise CdkitError(f"branch {branch.name!r} leaves nothing of prompt {row // expand}")
        prompts += [prompt] * expand
        aligned = min(aligned, _common_end(tokens, prompt.ids))
    length = max(len(prompt.ids) for prompt in prompts)
    device = ids.device

    def padded(row: Sequence[int], value: int) -> list[int]:
        return [value] * (length - len(row)) + list(row)

    new_ids = torch.tensor([padded(prompt.ids, -1) for prompt in prompts], device=device)
    flags = torch.tensor([padded(prompt.is_image, 0) for prompt in prompts], device=device)
    on_image, real = flags == 1, new_ids >= 0
    image_index = adapter.image_index(model, new_ids).masked_fill(~on_image, -1)
    text_ids = new_ids.masked_fill(on_image | ~real, 0)
    embeds = adapter.embed(model, text_ids).to(original.embeds.dtype)
    rows = PromptRows(
        place_features(
            embeds, image_index, features or features_in(original.embeds, original.image_index)
        ),
        real,
        image_index,
        (real.long().cumsum(dim=-1) - 1).clamp(min=0),
    )
    return rows, aligned


def _common_end(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

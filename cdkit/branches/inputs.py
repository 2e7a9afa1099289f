"""The rows of a batch with branches: the original branch's rows, then each distorted branch's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cdkit.branches.layout import Layout, make_layout
from cdkit.errors import CdkitError


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of one branch, or of all branches below each other."""

    embeds: Float[Tensor, "rows tokens hidden"]
    token_mask: Bool[Tensor, "rows tokens"]
    image_index: Int[Tensor, "rows tokens"]
    positions: Int[Tensor, "rows tokens *axes"]
    deepstack: tuple[Float[Tensor, "rows tokens hidden"], ...] = ()
    """What deeper layers add at the image tokens, 0 elsewhere."""
    token_values: Mapping[str, Shaped[Tensor, "rows tokens"]] = field(default_factory=dict)
    """Arguments of the decoder with a value for each token (`ModelAdapter.token_arguments`)."""

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PromptRows":
        return PromptRows(
            change(self.embeds),
            change(self.token_mask),
            change(self.image_index),
            change(self.positions),
            tuple(change(features) for features in self.deepstack),
            {name: change(values) for name, values in self.token_values.items()},
        )

    def upto(self, column: int) -> "PromptRows":
        return self._each(lambda x: x[:, :column])

    def after(self, column: int) -> "PromptRows":
        return self._each(lambda x: x[:, column:])

    def tail(self, tokens: Int[Tensor, " rows"]) -> "PromptRows":
        """Each row without its first tokens, left-padded to the longest that is left."""
        place = self.token_mask.long().cumsum(dim=-1)
        token_mask = self.token_mask & (place > tokens[:, None])
        columns = int(token_mask.sum(dim=-1).max())
        short = self.after(self.token_mask.shape[1] - columns)
        token_mask = token_mask[:, token_mask.shape[1] - columns :]
        return PromptRows(
            short.embeds,
            token_mask,
            short.image_index.masked_fill(~token_mask, -1),
            short.positions.masked_fill(
                ~token_mask.view(*token_mask.shape, *[1] * (short.positions.ndim - 2)), 0
            ),
            tuple(features.masked_fill(~token_mask[..., None], 0) for features in short.deepstack),
            {name: own.masked_fill(~token_mask, 0) for name, own in short.token_values.items()},
        )

    def padded_to(self, length: int) -> "PromptRows":
        return PromptRows(
            left_pad(self.embeds, length, 0),
            left_pad(self.token_mask, length, False),
            left_pad(self.image_index, length, -1),
            left_pad(self.positions, length, 0),
            tuple(left_pad(features, length, 0) for features in self.deepstack),
            {name: left_pad(own, length, 0) for name, own in self.token_values.items()},
        )


def left_pad(x: Tensor, length: int, value: float | int) -> Tensor:
    """`x` (rows, tokens, ...) with `value` before each row, `length` tokens in all."""
    missing = length - x.shape[1]
    if missing == 0:
        return x
    filler = x.new_full((x.shape[0], missing, *x.shape[2:]), value)
    return torch.cat((filler, x), dim=1)


def joined(parts: Sequence[PromptRows], dim: int) -> PromptRows:
    """Rows below each other (0), or columns beside each other (1)."""
    return PromptRows(
        torch.cat([part.embeds for part in parts], dim),
        torch.cat([part.token_mask for part in parts], dim),
        torch.cat([part.image_index for part in parts], dim),
        torch.cat([part.positions for part in parts], dim),
        tuple(
            torch.cat(features, dim)
            for features in zip(*(part.deepstack for part in parts), strict=True)
        ),
        {
            name: torch.cat([part.token_values[name] for part in parts], dim)
            for name in parts[0].token_values
        },
    )


def stack(branches: Sequence[PromptRows], shared: int = 0) -> tuple[PromptRows, Layout, slice]:
    """Put the rows of all branches below each other, in columns of one length.

    The first `shared` columns are those of the original branch, which stands first: they are the
    same in all branches. What follows is left-padded to one length.

    Returns:
        The rows, their layout, and the columns in which the original branch has padding because
        prompts of other branches are longer.
    """
    original = branches[0]
    length = original.token_mask.shape[1]
    before = original.token_mask[:, :shared].sum(dim=-1)
    lasts = [
        # prompts of the very columns of the original ones may be padded on the right as well
        branch.after(shared) if branch.token_mask is original.token_mask else branch.tail(before)
        for branch in branches
    ]
    longest = max(last.token_mask.shape[1] for last in lasts)
    first = original.upto(shared)
    rows = [joined((first, last.padded_to(longest)), dim=1) for last in lasts]
    whole = joined(rows, dim=0)
    padding = slice(shared, shared + longest - (length - shared))
    return whole, make_layout(whole.image_index, whole.token_mask), padding


def columns_of_values(
    values: Shaped[Tensor, "rows prompt"],
    given: Shaped[Tensor, "_ _"],
    start: int,
    stop: int,
) -> Shaped[Tensor, "rows columns"]:
    """An argument with a value for each token, in the columns from `start` to `stop`.

    Args:
        values: Its values in the prompts of all rows.
        given: What the decoder is given of the rows of the original branch. Columns behind the
            prompt have its last values; as many as it lacks have the last one.
        start: The first column.
        stop: The column behind the last one.
    """
    prompt = values.shape[1]
    late = stop - max(start, prompt)
    here = values[:, start:stop]
    if late <= 0:
        return here
    own = given[:, -late:] if given.shape[1] > prompt - start else given[:, -1:].expand(-1, late)
    return torch.cat((here, own.repeat(len(values) // len(own), 1).to(values)), dim=1)


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
    features: Float[Tensor, "tokens hidden"], tokens: Sequence[int], expand: int
) -> list[Float[Tensor, "_ hidden"]]:
    """Features of all image tokens -> one tensor a row, where each sample has `expand` rows."""
    if features.shape[0] != sum(tokens):
        raise CdkitError(
            f"the prompts have {sum(tokens)} image tokens but the image encoder gives "
            f"{features.shape[0]} features; prompts and images do not belong together"
        )
    return [own for own in torch.split(features, list(tokens)) for _ in range(expand)]


def features_in(
    embeds: Float[Tensor, "rows tokens hidden"], image_index: Int[Tensor, "rows tokens"]
) -> list[Float[Tensor, "_ hidden"]]:
    """The image features that stand in each row's embeddings."""
    return [row[index >= 0] for row, index in zip(embeds, image_index, strict=True)]

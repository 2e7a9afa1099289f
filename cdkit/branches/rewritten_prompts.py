"""Prompts that a branch rewrites: its own tokens, its own padding, its own positions."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from cdkit.branches.inputs import PromptRows, features_in, left_pad, place_features
from cdkit.errors import CdkitError
from cdkit.interfaces.distortion import Prompt
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.methods.branch import Branch
from cdkit.methods.part_results import check_prompt


class Rewritten(NamedTuple):
    rows: PromptRows
    aligned: int
    """How many last tokens of every prompt are those of the original one."""
    shared: int
    """In how many first columns of the original prompts every prompt has the same tokens."""


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
) -> Rewritten:
    """A branch whose prompts are distorted: its own tokens, its own padding, its own positions."""
    prompts: list[Prompt] = []
    aligned = shared = ids.shape[1]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary: int | None = getattr(embedding, "num_embeddings", None)
    for row in range(0, ids.shape[0], expand):
        token_mask = original.token_mask[row]
        is_image = (original.image_index[row][token_mask] >= 0).tolist()
        tokens = ids[row][token_mask].tolist()
        prompt = distorted_prompt(
            tokens,
            is_image,
            branch,
            adapter=adapter,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
        )
        if not prompt.ids:
            raise CdkitError(f"branch {branch.name!r} leaves nothing of prompt {row // expand}")
        prompts += [prompt] * expand
        aligned = min(aligned, _common(reversed(tokens), reversed(prompt.ids)))
        old, new = zip(tokens, is_image, strict=True), zip(prompt.ids, prompt.is_image, strict=True)
        # the last token stands by itself: its state is what predicts the next one
        first = min(_common(old, new), len(prompt.ids) - 1)
        shared = min(shared, ids.shape[1] - len(tokens) + first)
    length = max(len(prompt.ids) for prompt in prompts)
    device = ids.device

    def padded(row: Sequence[int], value: int) -> list[int]:
        return [value] * (length - len(row)) + list(row)

    new_ids = torch.tensor([padded(prompt.ids, -1) for prompt in prompts], device=device)
    flags = torch.tensor([padded(prompt.is_image, 0) for prompt in prompts], device=device)
    on_image, token_mask = flags == 1, new_ids >= 0
    image_index = _numbered(on_image, original.image_index)
    text_ids = new_ids.masked_fill(on_image | ~token_mask, 0)
    embeds = adapter.embed(model, text_ids).to(original.embeds.dtype)
    own = features or features_in(original.embeds, original.image_index)
    levels = [features_in(level, original.image_index) for level in original.deepstack]
    rows = PromptRows(
        place_features(embeds, image_index, own),
        token_mask,
        image_index,
        _rebased(original, image_index, token_mask),
        new_ids.clamp(min=0),
        tuple(place_features(torch.zeros_like(embeds), image_index, level) for level in levels),
        {
            name: _values_of(values, ids, original, new_ids, image_index, name)
            for name, values in original.token_values.items()
        },
    )
    return Rewritten(rows, aligned, shared)


def distorted_prompt(
    ids: Sequence[int],
    is_image: Sequence[bool],
    branch: Branch,
    *,
    adapter: ModelAdapter,
    tokenizer: Any,
    vocabulary: int | None = None,
) -> Prompt:
    """What a branch makes of one prompt.

    Args:
        ids: The prompt's token ids, without padding.
        is_image: For each token whether it is an image token.
        branch: The branch.
        adapter: Says where an instruction can stand.
        tokenizer: The model's; may be None where no distortion writes text.
        vocabulary: How many tokens the model has; None where that is not known.
    """

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    slot, flags = adapter.system_slot(ids, tokenizer), list(is_image)
    after_image = len(flags) - flags[::-1].index(True) if any(flags) else 0
    prompt = Prompt(
        ids=tuple(ids),
        is_image=tuple(flags),
        system_slot=slot,
        question_slot=max(slot, after_image),  # a first token of the text may follow the image
        encode=encode,
    )
    for distortion in branch.prompt:
        prompt = check_prompt(distortion, distortion.distort(prompt), prompt, vocabulary)
    return prompt


def rewritten_text(ids: Sequence[int], branch: Branch, tokenizer: Any) -> tuple[int, ...]:
    """The question as the image encoder reads it, under the branch's prompt distortions."""

    def encode(text: str) -> tuple[int, ...]:
        if tokenizer is None:
            raise CdkitError(
                f"branch {branch.name!r} writes text for the image encoder, which the processor "
                "has no tokenizer for; pass the model's own processor to cdkit.attach"
            )
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = Prompt(tuple(ids), (False,) * len(ids), system_slot=1, question_slot=1, encode=encode)
    for distortion in branch.prompt:
        prompt = check_prompt(distortion, distortion.distort(prompt), prompt)
    return prompt.ids


def _values_of(
    values: Shaped[Tensor, "rows old"],
    ids: Int[Tensor, "rows old"],
    original: PromptRows,
    new_ids: Int[Tensor, "rows tokens"],
    image_index: Int[Tensor, "rows tokens"],
    name: str,
) -> Shaped[Tensor, "rows tokens"]:
    """An argument with a value for each token, for rewritten prompts.

    An image keeps its values, a token of the text that of the same token in the original prompt,
    and what that prompt does not have gets the value of its last token. Padding, whose id is -1,
    has 0.
    """
    made = values.new_zeros(new_ids.shape)
    for row, own in enumerate(original.token_mask):
        text = own & (original.image_index[row] < 0)
        pairs = list(zip(ids[row, text].tolist(), values[row, text].tolist(), strict=True))
        known = dict(pairs)
        if any(known[token] != value for token, value in pairs):
            raise CdkitError(
                f"{name} has several values at the same token of prompt {row}, so those of a "
                "rewritten prompt are not known; use a method that leaves the prompt as it is"
            )
        last, padding = values[row, own][-1].item(), {-1: 0}
        new = [(known | padding).get(token, last) for token in new_ids[row].tolist()]
        made[row] = made.new_tensor(new)
        on_image = image_index[row] >= 0
        if bool(on_image.any()):
            made[row, on_image] = values[row, original.image_index[row] >= 0]
    return made


def _numbered(
    on_image: Bool[Tensor, "rows tokens"], original: Int[Tensor, "rows old"]
) -> Int[Tensor, "rows tokens"]:
    """The numbers of the images: a prompt keeps all of its image tokens, or none."""
    index = torch.full_like(on_image, -1, dtype=original.dtype)
    for row, flags in enumerate(on_image):
        if bool(flags.any()):
            index[row, flags] = original[row][original[row] >= 0]
    return index


def _rebased(
    original: PromptRows,
    image_index: Int[Tensor, "rows tokens"],
    token_mask: Bool[Tensor, "rows tokens"],
) -> Int[Tensor, "rows tokens *axes"]:
    """Positions of rewritten prompts: text steps by one, an image keeps its pattern and its span.

    They begin where the original prompts do.
    """
    first = original.token_mask.long().argmax(dim=1)
    start = original.positions[torch.arange(len(first), device=first.device), first]
    if start.ndim == 1:
        return (start[:, None] + token_mask.long().cumsum(dim=-1) - 1).masked_fill(~token_mask, 0)
    rows = [
        _on_axes(original.positions[row], original.image_index[row], start[row], index[own])
        for row, (index, own) in enumerate(zip(image_index, token_mask, strict=True))
    ]
    return torch.stack([left_pad(row[None], token_mask.shape[1], 0)[0] for row in rows])


def _on_axes(
    old: Int[Tensor, "old axes"],
    old_index: Int[Tensor, " old"],
    start: Int[Tensor, " axes"],
    index: Int[Tensor, " tokens"],
) -> Int[Tensor, "tokens axes"]:
    """One prompt's positions where they have several axes.

    What follows an image stands behind its largest position on any rotated axis, or where it stood
    in the original prompt, if that is nearer: text may follow a video before the last frame's time.
    Of four axes the first only counts tokens.
    """
    now, blocks, numbers = start, list[Tensor](), index.tolist()
    done = 0
    while done < len(numbers):
        if numbers[done] < 0:
            block = now[None]
            span = torch.ones_like(now)
        else:
            at = (old_index == numbers[done]).nonzero()[:, 0]
            block = old[int(at[0]) : int(at[-1]) + 1]  # marks inside of the image come along
            block = block - block[0] + now
            span = block.amax(dim=0) + 1 - now
            rotated = span[-3:].max()
            behind = old[int(at[-1]) + 1 : int(at[-1]) + 2] - old[int(at[0])]
            if len(behind) and int(behind[0, -3:].max()) > 0:
                rotated = torch.minimum(rotated, behind[0, -3:].max())
            span = torch.cat((span[:-3], rotated.expand(3)))
        blocks.append(block)
        now, done = now + span, done + len(block)
    return torch.cat(blocks)


def _common(a: Iterable[object], b: Iterable[object]) -> int:
    """How many first items are the same."""
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

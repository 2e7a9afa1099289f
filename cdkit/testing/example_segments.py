"""Segments to try strategies on, cut in pieces and set in larger batches; see `cdkit.testing`."""

import dataclasses
import math

import torch
from torch import Tensor

from cdkit.interfaces.segment import CrossModalSegment, ImageColumns
from cdkit.testing.values import normal

DEPTH = 4
"""How many layers the decoder of the examples has."""


def example_segments(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64
) -> list[CrossModalSegment]:
    """An example segment for each layer of a decoder of `DEPTH` layers."""
    return [example_segment(dtype, values, layer=layer) for layer in range(DEPTH)]


def example_segment(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64, *, layer: int = 1
) -> CrossModalSegment:
    """A random segment of three samples: two images, one image, and one beside padding.

    Args:
        dtype: Of queries and logits.
        values: The dtype of keys and values.
        layer: The layer that it is of.

    Returns:
        A segment of 3 rows with 4 heads (two share a key), 6 image columns and 6 text rows: four
        of the prompt, then two that were generated.
    """
    image_index = torch.tensor([[0, 0, 1, 1, 1, 1], [0] * 6, [0] * 6])  # unequal grids
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2, 4:] = False
    cells = valid[:, None].repeat(1, 6, 1)
    cells[0, 0] &= image_index[0] == 0  # this row stands between the two images
    cells[2, 0] = False  # and this one is padding
    prompt = torch.tensor([True] * 4 + [False] * 2).repeat(3, 1)
    prompt[2, 0] = False
    seed = 10 * layer
    keys, queries = normal(seed + 1, 3, 2, 6, 4), normal(seed + 2, 3, 4, 6, 4)
    logits = queries @ keys.repeat_interleave(2, dim=1).mT / 2
    image = ImageColumns(
        keys=keys.to(values),
        values=normal(seed + 3, 3, 2, 6, 4).to(values),
        valid=valid,
        image_index=image_index,
        token_index=torch.arange(2, 8).repeat(3, 1),
        rng_keys=torch.tensor([11, 22, 33]),
        layer=layer,
        depth=DEPTH,
    )
    text_logits = normal(seed + 4, 3, 4, 6, 14)
    text_logits[..., 2:8] = -math.inf  # the image columns
    ahead = torch.arange(14) > torch.arange(8, 14)[:, None]
    return CrossModalSegment(
        image=image,
        queries=queries.to(dtype),
        logits=logits.to(dtype).masked_fill(~cells[:, None], -math.inf),
        cells=cells,
        prompt=prompt,
        predicts_next=torch.tensor([False] * 3 + [True] * 3).repeat(3, 1),
        token_index=torch.arange(8, 14).repeat(3, 1),
        text_logits=text_logits.to(dtype).masked_fill(ahead, -math.inf),
        before_image=(torch.arange(14) < 2).repeat(3, 1),
        generated_columns=(torch.arange(14) >= 12).repeat(3, 1),
    )


def cut(
    segment: CrossModalSegment,
    *,
    rows: slice | Tensor = slice(None),
    text: slice = slice(None),
    image: slice = slice(None),
    columns: slice = slice(None),
) -> CrossModalSegment:
    """The segment of some rows of the batch, text rows, image columns, or columns of all tokens."""
    old, replaced, replacement = segment.image, segment.replaced, segment.replacement
    return CrossModalSegment(
        image=ImageColumns(
            keys=old.keys[rows][:, :, image],
            values=old.values[rows][:, :, image],
            valid=old.valid[rows][:, image],
            image_index=old.image_index[rows][:, image],
            token_index=old.token_index[rows][:, image],
            rng_keys=old.rng_keys[rows],
            layer=old.layer,
            depth=old.depth,
        ),
        queries=segment.queries[rows][:, :, text],
        logits=segment.logits[rows][:, :, text, image],
        cells=segment.cells[rows][:, text, image],
        prompt=segment.prompt[rows][:, text],
        predicts_next=segment.predicts_next[rows][:, text],
        token_index=segment.token_index[rows][:, text],
        text_logits=segment.text_logits[rows][:, :, text, columns],
        before_image=segment.before_image[rows][:, columns],
        generated_columns=segment.generated_columns[rows][:, columns],
        replaced=None if replaced is None else replaced[rows][:, :, text, image],
        # an image axis of 1 stands for all columns
        replacement=None if replacement is None else replacement[rows][:, :, image],
        pruned=None if segment.pruned is None else segment.pruned[rows][:, image],
    )


def fresh(segment: CrossModalSegment) -> CrossModalSegment:
    """The segment with an empty answer cache."""
    return dataclasses.replace(segment, image=dataclasses.replace(segment.image, answer_cache={}))


IMAGE, TEXT, COLUMNS = 3, 2, 9
"""By how many image columns, text rows and columns of all tokens `beside_a_mate` is larger."""


def beside_a_mate(segment: CrossModalSegment) -> CrossModalSegment:
    """The segment as it stands in a batch with one sample more, whose prompt is longer.

    That sample has three images, of other sizes, and large logits. The others are padded as the
    engine pads them: text and columns of all tokens before theirs, image columns behind theirs.
    What stands there are numbers of other tokens. One of the text rows that are new is, in them,
    text before the image, which attends to text alone.

    Returns:
        A segment of one row more; `without_the_mate` undoes it.
    """
    rows, heads = segment.logits.shape[:2]
    seed = 1000 + segment.image.layer

    def grown(x: Tensor, by: tuple[int, ...], fill: float | int | bool, mate: Tensor) -> Tensor:
        return torch.cat((torch.nn.functional.pad(x, by, value=fill), mate.to(x.dtype)[None]))

    def loud(x: Tensor, by: tuple[int, ...], number: int) -> Tensor:
        """`x` with large random numbers around it, and a row of them."""
        whole = torch.nn.functional.pad(x, by)
        noise = 5 * normal(seed + number, rows + 1, *whole.shape[1:]).to(x.dtype)
        inside = torch.nn.functional.pad(torch.ones_like(x, dtype=torch.bool), by)
        noise[:rows] = torch.where(inside, whole, noise[:rows])
        return noise

    image, text, before = (0, IMAGE), (TEXT, 0), (COLUMNS, 0)
    old = segment.image
    count, length = old.valid.shape[1] + IMAGE, segment.cells.shape[1] + TEXT
    total = segment.text_logits.shape[-1] + COLUMNS
    column = torch.arange(total)
    own_image = (column >= 2) & (column < 2 + count)
    ahead = column > torch.arange(total - length, total)[:, None]
    text_logits = grown(
        segment.text_logits,
        (*before, *text),
        -math.inf,
        (5 * normal(seed + 3, heads, length, total)).masked_fill(own_image | ahead, -math.inf),
    )
    system = torch.nn.functional.pad(segment.before_image, before)
    first = text_logits[:rows, :, TEXT - 1]
    text_logits[:rows, :, TEXT - 1] = torch.where(system[:, None], torch.zeros_like(first), first)
    prompt = torch.ones(length, dtype=torch.bool)
    prompt[TEXT + int(segment.prompt.any(0).sum()) :] = False
    new_image = ImageColumns(
        keys=loud(old.keys, (0, 0, *image), 1),
        values=loud(old.values, (0, 0, *image), 2),
        valid=grown(old.valid, image, False, torch.ones(count)),
        image_index=grown(
            old.image_index, image, -1, torch.tensor([0] * 2 + [1] * 3 + [2] * (count - 5))
        ),
        token_index=grown(old.token_index, image, 0, torch.arange(2, 2 + count)),
        rng_keys=torch.cat((old.rng_keys, torch.tensor([44]))),
        layer=old.layer,
        depth=old.depth,
        images=3,
    )
    last = segment.predicts_next.any(0)
    return CrossModalSegment(
        image=new_image,
        queries=loud(segment.queries, (0, 0, *text), 4),
        logits=grown(
            segment.logits, (*image, *text), -math.inf, 5 * normal(seed + 5, heads, length, count)
        ),
        cells=grown(segment.cells, (*image, *text), False, torch.ones(length, count)),
        prompt=grown(segment.prompt, text, False, prompt),
        predicts_next=grown(
            segment.predicts_next, text, False, torch.nn.functional.pad(last, text)
        ),
        token_index=grown(
            segment.token_index, text, 0, torch.arange(2 + count, 2 + count + length)
        ),
        text_logits=text_logits,
        before_image=torch.cat((system, (column < 2)[None])),
        generated_columns=grown(
            segment.generated_columns, before, False, column >= total - int((~prompt).sum())
        ),
    )


def without_the_mate(segment: CrossModalSegment) -> CrossModalSegment:
    """What `beside_a_mate` was given, cut out of what it gives."""
    rows, image = segment.logits.shape[0] - 1, segment.logits.shape[-1] - IMAGE
    return cut(
        segment,
        rows=slice(rows),
        text=slice(TEXT, None),
        image=slice(image),
        columns=slice(COLUMNS, None),
    )

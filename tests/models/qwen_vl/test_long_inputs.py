"""Log-n attention and dynamic NTK begin past the training length; there the port refuses to run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import cdkit
from cdkit.interfaces.cache_names import CACHE
from cdkit.models.qwen_vl import convert

from .conftest import exact, texts
from .published import CONFIG, END, IMAGE, write_published
from .reference import Reference

LIMIT = 300
TEXT = LIMIT - 258
"""Tokens of text beside one image at the limit."""


def test_where_the_rules_begin(reference: Reference) -> None:
    assert CONFIG["seq_length"] == reference.length == LIMIT
    lengths = (1, 150, LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1)
    assert [reference.alpha(length) for length in lengths] == [1, 1, 1, 3, 3, 7]
    assert [reference.log_n(column) for column in lengths[:3]] == [1, 1, 1]
    assert 1 < reference.log_n(LIMIT + 1) < reference.log_n(2 * LIMIT)


@torch.no_grad()
def test_up_to_the_training_length(
    model: Any,
    reference: Reference,
    pixels: Callable[..., Tensor],
    row: Callable[..., list[int]],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    """Prefill and decoding to the last column equal the reference with both rules on."""
    ids, images = row(2, TEXT - 2), pixels()
    image = reference.image(images[0])
    want = reference.logits(ids, [image], image=IMAGE)
    assert want.equal(replace(reference, long=()).logits(ids, [image], image=IMAGE))
    close(model(input_ids=torch.tensor([ids]), pixel_values=images).logits[0], want)
    first = model(input_ids=torch.tensor([ids[:-6]]), pixel_values=images, use_cache=True)
    have, cache = [first.logits[0]], first[CACHE]
    for token in ids[-6:]:
        have.append(model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits[0])
    close(torch.cat(have), want)


@torch.no_grad()
def test_beyond_it_both_rules_count(reference: Reference, row: Callable[..., list[int]]) -> None:
    """The refusal is not idle: stock Qwen2 would be wrong from the very next column on."""
    ids = row(LIMIT + 1)
    plain = replace(reference, long=()).logits(ids, [], image=IMAGE)
    for rule in ("logn", "ntk"):
        ruled = replace(reference, long=(rule,)).logits(ids, [], image=IMAGE)
        assert (ruled[-1] - plain[-1]).abs().max() > 1e-6
    padded = replace(reference, long=("logn",)).logits(ids[:-1], [], image=IMAGE, pad=1)
    assert (padded[-1] - plain[-2]).abs().max() > 1e-6  # padding counts as columns


@torch.no_grad()
def test_beyond_it_is_refused(
    model: Any, pixels: Callable[..., Tensor], row: Callable[..., list[int]]
) -> None:
    ids, images = row(2, TEXT - 2), pixels()
    refused = pytest.raises(
        cdkit.CdkitError, match=r"301 tokens are more than the 300 that Qwen-VL.*Shorten the prompt"
    )
    with refused:
        model(input_ids=torch.tensor([[5, *ids]]), pixel_values=images)
    with refused:
        model(**texts([[5] * 301, ids], pad=END), pixel_values=images)
    with refused:
        model.generate(
            input_ids=torch.tensor([ids[:-1]]),
            pixel_values=images,
            max_new_tokens=3,
            eos_token_id=None,
        )


@torch.no_grad()
def test_training_has_no_such_rules(
    model: Any,
    reference: Reference,
    row: Callable[..., list[int]],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    ids = row(LIMIT + 4)
    model.train()
    try:
        have = model(input_ids=torch.tensor([ids])).logits[0]
    finally:
        model.eval()
    close(have, replace(reference, long=()).logits(ids, [], image=IMAGE))


@torch.no_grad()
def test_a_checkpoint_without_these_rules_runs_on(
    tmp_path: Path,
    weights: dict[str, Tensor],
    reference: Reference,
    row: Callable[..., list[int]],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    without: dict[str, object] = {"use_dynamic_ntk": False, "use_logn_attn": False}
    folder = write_published(tmp_path / "published", weights, config=without)
    model = exact(AutoModelForImageTextToText.from_pretrained(convert(folder, tmp_path / "out")))
    assert model.config.text_config.max_position_embeddings == CONFIG["max_position_embeddings"]
    ids = row(LIMIT + 4)
    have = model(input_ids=torch.tensor([ids])).logits[0]
    close(have, replace(reference, long=()).logits(ids, [], image=IMAGE))

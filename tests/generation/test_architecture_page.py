"""docs/architecture.md tells the true way of one call of `generate`, and the way stays short."""

import inspect
import os
import re
import sys
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import cdkit

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PROMPT, TOKEN, END = "The prompt", "A further token", "The end"
MOST_SWITCHES = {PROMPT: 85, TOKEN: 22}

Function = tuple[str, str]
"""A file, relative to cdkit/, and the qualified name of a function in it."""


class Walk(NamedTuple):
    """The calls of our functions in a `generate` of three tokens, in order."""

    calls: list[Function]
    decoder: list[int]
    """Where in `calls` the stock decoder was called."""


@cache
def file_name(path: str) -> str | None:
    """The file relative to cdkit/, strategies/ and models/ as seen from there; None elsewhere."""
    real, package = Path(os.path.realpath(path)), Path(cdkit.__file__).parent
    # in a checkout these three are links out of the package; in an installed one they lie in it
    for folder in ("strategies", "models", "evals"):
        home = (package / folder).resolve()
        if real.is_relative_to(home):
            inside = f"{folder}/{real.relative_to(home).as_posix()}"
            return None if folder == "evals" else inside
    package = package.resolve()
    return real.relative_to(package).as_posix() if real.is_relative_to(package) else None


def is_property(frame: FrameType) -> bool:
    owner = type(frame.f_locals.get("self"))
    return isinstance(getattr(owner, frame.f_code.co_name, None), property)


@cache
def walk(**parameters: float) -> Walk:
    """CMAC on a LLaVA of one layer."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=99,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    model.eval()
    ids = torch.tensor([[1, 5, 6, *[99] * 16, *range(10, 20)]])
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    found = Walk([], [])
    decoder = inspect.unwrap(type(model.model.language_model).forward).__code__

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code is decoder:
            found.decoder.append(len(found.calls))
        file = file_name(code.co_filename)
        # a lambda or a comprehension is no place to send a reader to, a property no step
        if file is not None and not code.co_name.startswith("<") and not is_property(frame):
            found.calls.append((file, code.co_qualname))

    def generate() -> None:
        model.generate(
            **inputs, do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=4
        )

    with cdkit.attach(model, cdkit.load("cmac", **parameters)), torch.inference_mode():
        generate()  # what is imported or made at the first call is not what a call does
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            generate()
        finally:
            sys.setprofile(before)
    return found


def rows() -> dict[str, list[Function]]:
    """The `file: function` of each row of each section that has such rows."""
    sections = PAGE.read_text().split("\n## ")[1:]
    found = {}
    for section in sections:
        title, _, text = section.partition("\n")
        named = re.findall(r"\| `([\w/]+\.py): ([\w.<>]+)` \|$", text, re.MULTILINE)
        if named:
            found[title] = named
    return found


def out_of_order(named: list[Function], calls: list[Function]) -> list[Function]:
    """Rows that are not called at all, or first called before the row above them."""
    first = {call: index for index, call in reversed(list(enumerate(calls)))}
    absent = [row for row in named if row not in first]
    here = [row for row in named if row in first]
    return absent + [below for row, below in pairwise(here) if first[below] <= first[row]]


def switches(calls: list[Function]) -> int:
    """How often the next call is in another file than the one before."""
    return max(len(list(groupby(calls, key=lambda call: call[0]))) - 1, 0)


def test_the_page_has_its_three_tables() -> None:
    assert list(rows()) == [PROMPT, TOKEN, END]


@pytest.mark.parametrize("section", [PROMPT, TOKEN, END])
def test_rows_are_called_in_the_order_of_the_page(section: str) -> None:
    calls = walk().calls
    steps = [i for i, call in enumerate(calls) if call[1] == "forward_step"]
    begin, stop = {
        PROMPT: (0, steps[1]),
        TOKEN: (steps[2], steps[3]),
        END: (steps[3], len(calls)),
    }[section]
    assert not out_of_order(rows()[section], calls[begin:stop])


def test_every_file_that_is_called_is_on_the_page() -> None:
    named = {file for section in rows().values() for file, _ in section}
    assert {file for file, _ in walk().calls} <= named


@pytest.mark.parametrize("section", [PROMPT, TOKEN])
def test_a_call_switches_seldom_between_files(section: str) -> None:
    """Counted without the plausibility constraint, so that figures of older versions compare."""
    calls, decoder = walk(beta=0.0)
    assert len(decoder) == 4
    part = calls[: decoder[1]] if section == PROMPT else calls[decoder[2] : decoder[3]]
    assert switches(part) <= MOST_SWITCHES[section]


def test_a_wrong_row_is_found() -> None:
    calls = [("a.py", "f"), ("b.py", "g"), ("a.py", "f"), ("c.py", "h")]
    right = [("a.py", "f"), ("b.py", "g"), ("c.py", "h")]
    assert not out_of_order(right, calls)
    assert out_of_order([right[1], right[0]], calls) == [right[0]]
    assert out_of_order([*right, ("d.py", "k")], calls) == [("d.py", "k")]
    assert switches(calls) == 3

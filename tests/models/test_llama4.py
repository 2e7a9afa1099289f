"""Llama 4: chunks, layers without RoPE, queries with a temperature, a mixture of experts.

In transformers 5.24 its forward ends in an error, and with beams it never runs: so the tests give
the class what it lacks, and no test of all families has it.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from covers import covering
from parity.decoders import Form
from parity.exact import exact
from parity.families import Prompt, answered, check, differs, wanted
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.probing.adapter_checks import (
    check_causal_prefix,
    check_logits,
    check_modules,
    check_stock_run,
)
from cdkit.probing.pixel_checks import check_pixels
from cdkit.probing.rotary_checks import check_rotary

from .modes import PRESETS, check_batch, check_off_and_identical, generated
from .modes import answered as by_preset
from .moved_tokens import follows, grids_of
from .tiny import (
    END,
    IMAGE,
    NEWLINE,
    START,
    TAG,
    Family,
    Inputs,
    Words,
    around,
    laid_out,
    made,
    pixels,
    text,
    vision,
)  # fmt: skip

LACKS = "image_outputs"


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MoeCausalLMOutputWithPast, LACKS, None, raising=False)


def _config(**more: Any) -> dict[str, Any]:
    """Three layers that see a chunk that no prompt here reaches, and one without RoPE."""
    of_text = text(
        "llama4_text", num_hidden_layers=4, moe_layers=[1, 3], num_local_experts=3,
        num_experts_per_tok=1, intermediate_size_mlp=48, no_rope_layers=[1, 1, 0, 1],
        **{"attention_chunk_size": 64, **more},
    )  # fmt: skip
    tower = vision(
        "llama4_vision_model", intermediate_size=64, vision_output_dim=24, pixel_shuffle_ratio=0.5,
        projector_input_dim=24, projector_output_dim=24,
    )  # fmt: skip
    return {
        "text_config": of_text, "vision_config": tower, "image_token_index": IMAGE,
        "boi_token_index": START, "eoi_token_index": END,
    }  # fmt: skip


def _separated_tiles(row: int) -> tuple[list[int], Inputs]:
    """Two tiles and the whole picture, or the whole picture alone."""
    part = [IMAGE] * 4
    tiles = ([*part, NEWLINE, *part, TAG], [])[row]
    image = [START, *tiles, 96, *part, END]
    return around(row, *image), {"pixel_values": pixels(row, (3, 1)[row], 3, 8, 8)}


FAMILY = Family("llama4", _config, _separated_tiles)


@functools.cache
def model_of(**more: Any) -> Any:
    """In float64, its complex numbers too."""
    as_it_is: Any = None
    model = made(replace(FAMILY, config=functools.partial(_config, **more), dtype=as_it_is))
    turns = {name: own for name, own in model.named_buffers() if own.is_complex()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.double()
    for name, own in turns.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, own.to(torch.complex128))
    return model


def given(*rows: int) -> Inputs:
    return laid_out(FAMILY, *rows)


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("row", [0, 1])
def test_a_token_follows_its_cell(row: int) -> None:
    found = grids_of(model_of(), given(row))
    assert not isinstance(found, str)
    assert [grid.name for grid in found] == (["whole picture", "tile 1", "tile 2"], [""])[row]
    assert follows(model_of(), given(row), found) == []


LAYERS: dict[str, dict[str, Any]] = {
    "chunks": {},
    "no chunks": {"attention_chunk_size": None},
    "temperature": {"floor_scale": 4, "attn_scale": 0.5},
    "temperature without chunks": {
        "floor_scale": 4, "attn_scale": 0.5, "attention_chunk_size": None,
    },
}  # fmt: skip


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("layers", LAYERS)
def test_off_is_stock_and_an_identical_branch_too(layers: str) -> None:
    rows = (0,) if "temperature" in layers else (0, 1)  # the stock model counts padding
    check_off_and_identical(model_of(**LAYERS[layers]), given(*rows))


SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0}
FASTER = ["cmac", "pai", "vcd", "icd", "dola"]


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampling"])
@pytest.mark.parametrize(("layers", "preset"), covering([*LAYERS], FASTER))
def test_faster_is_the_plain_algorithm(layers: str, preset: str, how: dict[str, Any]) -> None:
    model, batches = model_of(**LAYERS[layers]), [(0,), (1,), (0, 1)]
    if "temperature" in layers:
        batches = batches[:2]  # the stock model counts padding
        if preset in ("icd", "pai"):
            pytest.skip("its branch is padded")
    for rows in batches:
        logits = []
        for optimize in (True, False):
            kept: dict[str, Any] = {"optimize": optimize, "processor": Words()}
            with cdkit.attach(model, cdkit.load(preset), trace=("logits",), **kept) as run:
                generated(model, given(*rows), **how)
            steps = run.trace.steps
            logits.append(torch.stack([torch.stack([*step.logits.values()]) for step in steps]))
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def _run(preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names = [f"prompt {row}" for row in rows]
    return by_preset(
        model_of(), preset, given(*rows), words=Words(), names=names, optimize=optimize, **how
    )


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize(("mode", "preset"), covering(["greedy", "sampling"], PRESETS))
def test_a_batch_of_unequal_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    """Beams never run, in transformers itself."""
    check_batch(functools.partial(_run, preset), (0, 1), mode)


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("layers", ["chunks", "no chunks"])
def test_a_static_cache(layers: str) -> None:
    model, answers = model_of(**LAYERS[layers]), []
    for how in ({}, {"cache_implementation": "static"}):
        with cdkit.attach(model, cdkit.load("cmac")):
            answers.append(generated(model, given(0, 1), **how))
    assert answers[0].sequences.equal(answers[1].sequences)
    dynamic, static = (torch.stack(own.logits) for own in answers)
    torch.testing.assert_close(static, dynamic, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("repaired")
def test_the_adapter_holds() -> None:
    model, batch = model_of(), given(0, 1)
    adapter = adapter_for(model)
    check_modules(adapter, model)
    check_pixels(adapter, model, batch, check_stock_run(adapter, model, batch))
    check_logits(adapter, model, batch)
    check_rotary(adapter, model)
    check_causal_prefix(adapter, model, batch)
    rotary = adapter.rotary(model)
    assert rotary is not None
    assert [own is None for own in rotary] == [False, False, True, False]


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("case", ["cmac", "cmac-row", "imccd"])
def test_cmac_is_the_references(case: str) -> None:
    check(_ran(case))


FORMS: dict[str, Callable[[Form], Form]] = {
    "every layer turns": lambda own: replace(own, turns=own.turns[:1] * 4),
    "halves turn": lambda own: replace(own, pairs="halves"),
    "queries and keys are not normed": lambda own: replace(own, l2_norms=()),
}


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("mistake", FORMS)
def test_another_decoder_is_seen(mistake: str) -> None:
    own = _ran("cmac")
    form = FORMS[mistake](own.decoder.form)
    differs(own, wanted(own, decoder=replace(own.decoder, form=form)))


def _ran(case: str) -> Any:
    prompts = [
        Prompt(one, (int((one["input_ids"] == IMAGE).sum()),), IMAGE) for one in map(given, (0, 1))
    ]
    with exact(model_of()) as model:
        return answered(model, case, given(0, 1), prompts)


@pytest.mark.usefixtures("repaired")
def test_prompts_of_other_lengths_where_padding_counts() -> None:
    model = model_of(**LAYERS["temperature"])
    with (
        cdkit.attach(model, cdkit.load("icd"), processor=Words()),
        pytest.raises(cdkit.CdkitError, match="from 4 tokens on this model counts padding"),
    ):
        model.generate(**given(0), max_new_tokens=2)


def test_two_pictures_are_two_images() -> None:
    ids = torch.tensor([[1, START, 96, IMAGE, IMAGE, END, START, 96, IMAGE, END, 20]])
    index = cdkit.models.llama4.Llama4().image_index(model_of(), ids)
    assert index.tolist() == [[-1, -1, -1, 0, 0, -1, -1, -1, 1, -1, -1]]


def test_a_transformers_in_which_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(MoeCausalLMOutputWithPast, LACKS):
        monkeypatch.delattr(MoeCausalLMOutputWithPast, LACKS)
    with pytest.raises(AttributeError, match=LACKS):
        model_of().generate(**given(0), max_new_tokens=1)
    with pytest.raises(cdkit.CdkitError, match=r"Llama 4 does not run in transformers 5\.\d+"):
        cdkit.attach(model_of(), cdkit.load("vcd"))

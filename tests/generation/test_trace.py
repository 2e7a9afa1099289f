"""`run.trace`: what the branches saw, step by step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.execution.optimizations import ALL

from .presets import ACTIVE, takes_plain_calls

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
LAYERS, HEADS, COLUMNS = 3, 4, 18  # two images of 9 tokens in the second prompt
MakeInputs = Callable[..., dict[str, Tensor]]


def test_logits_of_every_branch(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load("cmac"), trace=("logits",)) as run:
        out = model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert len(run.trace.steps) == 3
    for step, logits in zip(run.trace.steps, out.logits, strict=True):
        assert set(step.logits) == {"original", "distorted"}
        assert step.combined is not None and step.combined.float().equal(logits)
        assert not step.image_attention and not step.mask


def test_image_attention_and_mask(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    wanted = ("image_attention", "mask")
    with cdkit.attach(model, cdkit.load("cmac", scope="row"), trace=wanted) as run:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert len(run.trace.steps) == 3
    for number, step in enumerate(run.trace.steps):
        assert set(step.image_attention) == {"original", "distorted"}
        for branch in step.image_attention.values():
            assert set(branch) == set(range(LAYERS))
            for weights in branch.values():
                assert weights.shape == (2, HEADS, COLUMNS)
                assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-12).all()
                assert (weights.sum(-1) > 0).all()
                assert not weights[0, :, 9:].any()  # the first prompt has one image
        for layer in range(LAYERS):
            assert not step.mask["original"][layer].any()
            mask = step.mask["distorted"][layer]
            assert mask.dtype == torch.bool
            assert mask.shape[:2] == (2, HEADS) and mask.shape[3] == COLUMNS
            assert (mask.shape[2] == 1) == (number > 0)
            last = mask[:, :, -1]  # one threshold for the row: some cells are above it
            assert last.any(dim=(1, 2)).all() and not last[0, :, 9:].any()
            assert not last[0, :, :9].all() and not last[1].all()
        assert not step.logits and step.combined is None


def test_the_attention_is_the_stock_models_where_nothing_calibrates(
    make_model: Callable[..., Any], make_inputs: MakeInputs
) -> None:
    model = make_model()
    inputs = make_inputs(QUESTIONS[0])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        stock = model(**inputs, output_attentions=True).attentions  # its softmax is in float32
    image = inputs["input_ids"][0] == model.config.image_token_id
    with cdkit.attach(model, cdkit.load("plain"), trace=("image_attention",)) as run:
        model.generate(**inputs, max_new_tokens=1)
    for layer, weights in run.trace.steps[0].image_attention["original"].items():
        torch.testing.assert_close(weights, stock[layer][:, :, -1, image], rtol=0, atol=1e-6)


def test_a_trace_changes_no_answer(
    model: Any, processor: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    for name in ("cmac", "vcd", "icd", "cmac_cmpc", "plausibility", "plain"):
        runs = []
        for trace in ((), ("logits", "image_attention", "mask")):
            with cdkit.attach(model, cdkit.load(name), processor=processor, trace=trace):
                runs.append(logits_of(model, inputs, max_new_tokens=3))
        torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-9, msg=name)


def test_it_holds_the_latest_call(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("vcd"), trace=("logits",)) as run:
        model.generate(**make_inputs(*QUESTIONS), max_new_tokens=4)
        model.generate(**make_inputs(QUESTIONS[0]), max_new_tokens=2)
        assert [step.logits["original"].shape[0] for step in run.trace.steps] == [1, 1]
        with torch.no_grad():
            model(**make_inputs(*QUESTIONS), logits_to_keep=1)
        assert [step.logits["original"].shape[0] for step in run.trace.steps] == [2]


def test_beams_have_a_row_each(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("cmac"), trace=("logits", "image_attention")) as run:
        model.generate(**make_inputs(*QUESTIONS), max_new_tokens=2, num_beams=3, do_sample=False)
    for step in run.trace.steps:
        assert step.logits["distorted"].shape[0] == 6
        assert step.image_attention["original"][0].shape[0] == 6


def test_what_it_keeps_is_not_written_to_later(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("cmac"), trace=("logits", "image_attention")) as run:
        model.generate(**make_inputs(*QUESTIONS), max_new_tokens=1)
        step = run.trace.steps[0]
        kept = [*step.logits.values(), *step.image_attention["original"].values()]
        copies = [tensor.clone() for tensor in kept]
        model.generate(**make_inputs(*QUESTIONS[::-1]), max_new_tokens=3)
    assert all(a.equal(b) for a, b in zip(kept, copies, strict=True))


def test_states_before_the_image_are_equal_in_both_branches(
    model: Any, make_inputs: MakeInputs
) -> None:
    """And up to its last token: a method that acts after the image changes nothing there.

    Every branch runs through the whole prompt here, so that the equality is not made by sharing.
    """
    inputs = make_inputs("before <image> after ?")
    stop = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
    seen: list[Tensor] = []
    layers = model.model.language_model.layers
    after_image = [n for n in ACTIVE if cdkit.load(n).live_branches]
    after_image = [n for n in after_image if takes_plain_calls(cdkit.load(n))]
    after_image = [n for n in after_image if all(b.keeps_prefix for b in cdkit.load(n).branches)]
    assert {"cmac", "value_noise", "attention_mask"} <= set(after_image)
    together = ALL - {"shared_prefix", "skip_identity"}
    for name in after_image:
        seen.clear()
        with cdkit.attach(model, cdkit.load(name), optimize=together), torch.no_grad():
            hooks = [
                layer.register_forward_hook(lambda m, i, output: seen.append(output))
                for layer in layers
            ]
            model(**inputs, logits_to_keep=1)
            for hook in hooks:
                hook.remove()
        assert len(seen) == LAYERS
        for hidden in seen:
            original, distorted = hidden
            torch.testing.assert_close(original[:stop], distorted[:stop], rtol=0, atol=1e-12)
        last = (seen[-1][0, stop:] - seen[-1][1, stop:]).abs().max()
        assert (float(last) > 1e-6) == (name != "identical")


def test_unknown_traces(model: Any) -> None:
    hint = r"no trace is called 'logit'\. Did you mean 'logits'"
    with pytest.raises(cdkit.CdkitError, match=hint):
        cdkit.attach(model, cdkit.load("cmac"), trace=("logit",))
    with pytest.raises(cdkit.CdkitError, match="trace must be a list of names out of logits"):
        cdkit.attach(model, cdkit.load("cmac"), trace="logits")

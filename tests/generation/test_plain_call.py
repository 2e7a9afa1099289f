"""`model(**inputs)` under `attach` scores with the method: one call is one prompt's rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.cache_names import CACHE

from . import presets
from .presets import takes_plain_calls

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
ACTIVE = [name for name in presets.ACTIVE if takes_plain_calls(cdkit.load(name))]


def call(model: Any, **inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs)


def positions(inputs: Inputs) -> Tensor:
    """As generate counts them: padding stands before 0."""
    return (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", presets.in_turn(ACTIVE, 0))
def test_it_equals_the_first_step_of_generate(
    name: str, model: Any, processor: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        first = logits_of(model, inputs, max_new_tokens=1)[0]
        out = call(model, **inputs, position_ids=positions(inputs), logits_to_keep=1)
    assert out.logits.shape == (2, 1, first.shape[-1])
    torch.testing.assert_close(out.logits[:, 0].float(), first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", presets.in_turn(ACTIVE, 1))
def test_every_column_is_scored_where_the_prompts_agree(
    name: str, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """All columns, or a refusal that says how many: never the wrong ones."""
    method = cdkit.load(name)
    inputs = make_inputs(QUESTIONS[0])
    tokens = inputs["input_ids"].shape[1]
    with cdkit.attach(model, method, processor=processor):
        if any(branch.prompt for branch in method.branches):
            with pytest.raises(cdkit.CdkitError, match="pass logits_to_keep"):
                call(model, **inputs)
            return
        if method.readout is not None:
            with pytest.raises(cdkit.CdkitError, match="pass logits_to_keep=1"):
                call(model, **inputs)
            return
        out = call(model, **inputs)
        last = call(model, **inputs, logits_to_keep=1)
    assert out.logits.shape[:2] == (1, tokens)
    torch.testing.assert_close(out.logits[:, -1:], last.logits, rtol=0, atol=1e-9)


def test_a_changed_prompt_scores_its_common_end(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """ICD writes before the image: everything from there on stands in both branches."""
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("icd"), processor=processor):
        whole = call(model, **inputs, logits_to_keep=6).logits
        last = call(model, **inputs, logits_to_keep=2).logits
    torch.testing.assert_close(whole[:, -2:], last, rtol=0, atol=1e-9)
    with cdkit.attach(
        model, cdkit.load("icd", place="question"), processor=processor
    ):  # the question has 5 tokens, the answer's cue 1
        after = call(model, **inputs, logits_to_keep=6).logits
        with pytest.raises(cdkit.CdkitError, match="only its last 6 tokens"):
            call(model, **inputs, logits_to_keep=7)
    assert not torch.allclose(after, whole)


@pytest.mark.parametrize("name", ["cmac", "imccd", "attention_mask", "value_noise", "random_mask"])
def test_teacher_forcing_equals_decoding_step_by_step(
    name: str, model: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    """With a threshold for each row the columns of an answer are those of its decoding."""
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(
        model, cdkit.load(name, scope="row"), sample_ids=["a"], trace=("logits",)
    ) as run:
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        steps = torch.stack(
            [step.combined for step in run.trace.steps if step.combined is not None]
        )
        forced = call(
            model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs["pixel_values"],
        ).logits[0, -7:-1]
    assert steps.shape[0] == 6
    torch.testing.assert_close(forced, steps[:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", presets.in_turn(ACTIVE, 2))
def test_going_on_by_hand(name: str, model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    """The cache of a plain call goes into the next one: greedy decoding in six lines."""
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        wanted = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        place, mask = positions(inputs), inputs["attention_mask"]
        out = call(model, **inputs, position_ids=place, logits_to_keep=1, use_cache=True)
        ids = [out.logits[:, -1].argmax(dim=-1, keepdim=True)]
        for step in range(4):
            # Hugging Face sees the original branch's length, whatever the other branches hold
            assert out[CACHE].get_seq_length() == inputs["input_ids"].shape[1] + step
            place, mask = place[:, -1:] + 1, torch.nn.functional.pad(mask, (0, 1), value=1)
            out = call(
                model,
                input_ids=ids[-1],
                attention_mask=mask,
                position_ids=place,
                **{CACHE: out[CACHE]},
            )
            ids.append(out.logits[:, -1].argmax(dim=-1, keepdim=True))
    assert torch.cat(ids, dim=1).equal(wanted[:, -5:])


@pytest.mark.parametrize("name", presets.in_turn(ACTIVE, 3))
def test_two_generations_by_hand_do_not_mix(
    name: str, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """Two prompts decoded in turns, each with its own cache; positions are counted for us."""
    questions = ("is there a cat ?", "w1 w2 <image> w3")
    with cdkit.attach(model, cdkit.load(name), processor=processor, sample_ids=["a"]):
        wanted = [
            model.generate(**make_inputs(q), max_new_tokens=4, do_sample=False)[0, -4:].tolist()
            for q in questions
        ]
        outs = [call(model, **make_inputs(q), logits_to_keep=1, use_cache=True) for q in questions]
        given: list[list[int]] = [[], []]
        for _ in range(4):
            for i, out in enumerate(outs):
                token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
                given[i].append(int(token))
                outs[i] = call(model, input_ids=token, **{CACHE: out[CACHE]})
    assert given == wanted


def test_a_cache_of_another_attachment_is_refused(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("cmac")):
        out = call(model, **inputs, use_cache=True)
    token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
    with cdkit.attach(model, cdkit.load("cmac")):
        with pytest.raises(cdkit.CdkitError, match=r"made under another cdkit\.attach"):
            call(model, input_ids=token, **{CACHE: out[CACHE]})


def test_the_encoded_image_without_pixels_is_enough_for_cmac_and_too_little_for_vcd(
    model: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with torch.no_grad():
        encoded = model.get_image_features(inputs["pixel_values"])
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    given = rest | {"mm_encoder_outputs": {"image": encoded}}
    with cdkit.attach(model, cdkit.load("cmac"), sample_ids=["a"]):
        wanted = call(model, **inputs).logits
        torch.testing.assert_close(call(model, **given).logits, wanted, rtol=0, atol=1e-9)
    with cdkit.attach(model, cdkit.load("vcd"), sample_ids=["a"]):
        with pytest.raises(cdkit.CdkitError, match="pass pixel_values"):
            call(model, **given)


def test_the_decoder_alone_is_refused(model: Any) -> None:
    with cdkit.attach(model, cdkit.load("cmac")):
        with pytest.raises(cdkit.CdkitError, match="call the model itself or its generate"):
            call(model.model.language_model, inputs_embeds=torch.zeros(1, 3, 32).double())


def test_return_dict_false_is_refused(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("cmac")):
        with pytest.raises(cdkit.CdkitError, match="return_dict=False is not supported"):
            call(model, **make_inputs(QUESTIONS[0]), return_dict=False)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", ["vcd", "cmac_imd"])
def test_its_cache_after_the_block(
    name: str, optimize: bool, model: Any, make_inputs: MakeInputs
) -> None:
    """One clear error; the original branch's cache goes on as the stock model's does."""
    inputs = make_inputs(QUESTIONS[0])
    method = cdkit.load(name)
    stock = call(model, **inputs, use_cache=True)[CACHE]
    with cdkit.attach(model, method, optimize=optimize):
        cache = call(model, **inputs, use_cache=True, logits_to_keep=1)[CACHE]
    length = inputs["input_ids"].shape[1]
    new: dict[str, Any] = {"input_ids": torch.tensor([[5]])}
    new["position_ids"] = torch.tensor([[length]])
    with pytest.raises(cdkit.CdkitError, match=r"made under cdkit\.attach .*cache\.original\(\)"):
        call(model, **new, **{CACHE: cache})
    with pytest.raises(cdkit.CdkitError, match=r"made under cdkit\.attach .*cache\.original\(\)"):
        model.generate(**inputs, max_new_tokens=2, **{CACHE: cache})
    wanted = call(model, **new, **{CACHE: stock}).logits
    given = call(model, **new, **{CACHE: cache.original()}).logits
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)

"""InstructBLIP: an inner language model generates, and a Q-Former reads the question, too."""

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.strategies.distortions.instruction_prefix import InstructionPrefix
from cdkit.testing import check_adapter

from .masked_tiny import (
    CLS,
    EACH,
    MORE,
    ONE,
    Prompt,
    Words,
    hf,
    ids_of,
    inputs,
    tiny,
    tokenizer,
)
from .masked_tiny import of_ids as written
from .masked_tiny import of_questions as asked
from .modes import CLOSE, MODES, PRESETS, check_batch, generated
from .test_masked import Doubled, branch_of, forced, run

NAME = "instructblip"
INSTRUCTION = "one two three"


def test_the_contract() -> None:
    check_adapter(tiny(NAME), inputs=inputs(NAME, ONE))


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_off_is_stock(how: dict[str, Any]) -> None:
    given = inputs(NAME, ONE, MORE)
    stock = torch.stack(generated(tiny(NAME), given, **how).logits)
    with cdkit.attach(tiny(NAME), cdkit.load("vcd", alpha=0.0, beta=0.0)):
        off = torch.stack(generated(tiny(NAME), given, **how).logits)
    assert off.equal(stock)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_is_each_prompt_alone(preset: str, mode: str) -> None:
    check_batch(functools.partial(run, NAME, preset), (ONE, MORE), mode)


def test_a_distorted_picture_is_that_picture() -> None:
    given = inputs(NAME, ONE, MORE)
    found = branch_of(NAME, given, Doubled())
    wanted = forced(NAME, given | {"pixel_values": 2 * given["pixel_values"]}, given)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), **CLOSE)


# ---- the Q-Former's own text ---------------------------------------------------------------------


def rewritten(*prompts: Prompt, former: bool = True) -> dict[str, Tensor]:
    """By hand: the instruction behind `<s>` in the text, behind `[CLS]` in the Q-Former's."""
    words = Words()
    assert words.qformer_tokenizer is not None
    own = words(INSTRUCTION, add_special_tokens=False)["input_ids"]
    other = words.qformer_tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"]
    slot = EACH[NAME] + 1
    rows = [ids_of(NAME, prompt) for prompt in prompts]
    given = inputs(NAME, *prompts)
    read = [ids[seen.bool()].tolist() for ids, seen in _asked(given)]
    if former:
        read = [[CLS, *other, *row[1:]] for row in read]
    made = written(NAME, [[*row[:slot], *own, *row[slot:]] for row in rows])
    return {"pixel_values": given["pixel_values"], **made, **asked(read)}


def _asked(given: dict[str, Tensor]) -> Any:
    return zip(given["qformer_input_ids"], given["qformer_attention_mask"], strict=True)


def test_an_instruction_reaches_the_qformer() -> None:
    """The stock model reads it twice, and so does the branch."""
    given = inputs(NAME, ONE, MORE)
    part = InstructionPrefix(INSTRUCTION)
    found = torch.stack(branch_of(NAME, given, part))
    wanted = torch.stack(forced(NAME, rewritten(ONE, MORE), given))
    torch.testing.assert_close(found, wanted, **CLOSE)
    once = torch.stack(forced(NAME, rewritten(ONE, MORE, former=False), given))
    assert float((once - wanted).abs().max()) > 0.1


def test_no_image_leaves_the_qformer_alone() -> None:
    """No text is written, so a processor is not needed, and the encoder runs once."""
    model, given, calls = tiny(NAME), inputs(NAME, ONE), list[int]()
    hook = model.qformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        with cdkit.attach(model, cdkit.load("pai")):
            generated(model, given)
    finally:
        hook.remove()
    assert calls == [1]


def test_no_tokenizer_for_the_qformer() -> None:
    words = "writes text for the image encoder, which the processor has no tokenizer for"
    with (
        cdkit.attach(tiny(NAME), cdkit.load("icd"), processor=Words(60)),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny(NAME).generate(**inputs(NAME, ONE), max_new_tokens=1)


# ---- plain calls ---------------------------------------------------------------------------------


def test_a_plain_call_is_scored() -> None:
    model, given = tiny(NAME), inputs(NAME, ONE, MORE)
    with torch.no_grad():
        stock = model(**given).logits
        with cdkit.attach(model, cdkit.load("vcd")):
            scored = model(**given).logits
            first = generated(model, given, max_new_tokens=1).logits[0]
        again = model(**given).logits
    assert scored.shape == stock.shape and not scored.allclose(stock)
    assert again.equal(stock)
    torch.testing.assert_close(scored[:, -1].float(), first, **CLOSE)


# ---- what is refused -----------------------------------------------------------------------------


def test_other_decoders() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"instructblip is an encoder-decoder: .*cross-att"):
        adapter_for(tiny(NAME, "t5"))
    with pytest.raises(
        cdkit.CdkitError, match="the decoder OPTModel has no layer with a self_attn module"
    ):
        adapter_for(tiny(NAME, "opt"))


def test_what_is_missing() -> None:
    model, given = tiny(NAME), inputs(NAME, ONE)
    for missing, words in {
        "input_ids": "input_ids of shape (prompts, tokens) are needed to find the image",
        "qformer_input_ids": "needs qformer_input_ids beside pixel_values",
    }.items():
        rest = {key: value for key, value in given.items() if key != missing}
        with (
            cdkit.attach(model, cdkit.load("vcd")),
            pytest.raises(cdkit.CdkitError, match=re.escape(words)),
        ):
            model.generate(**rest, max_new_tokens=1)
    with pytest.raises(cdkit.CdkitError, match="has 1 image at most, not 2"):
        adapter_for(model).prompt("is it?", images=2, processor=None)


# ---- its processor -------------------------------------------------------------------------------


def test_its_processor() -> None:
    """Which adds `<image>` to the tokenizer: its id is IMAGE."""
    size = BlipImageProcessorPil(size={"height": 8, "width": 8})
    former = tokenizer("[CLS]")
    former.padding_side = "right"
    tokens = EACH[NAME]
    processor = hf.InstructBlipProcessor(size, tokenizer(), former, num_query_tokens=tokens)
    check_adapter(tiny(NAME), processor=processor)

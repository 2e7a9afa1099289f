"""Families with masks of their own, or tiles that are filled up: Gemma 3, PaliGemma, Idefics."""

import functools
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from covers import a_third, covering
from PIL import Image
from tokenizers import processors
from torch import Tensor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.cache_names import CACHE
from cdkit.strategies.distortions.instruction_prefix import InstructionPrefix
from cdkit.testing import check_adapter

from .masked_tiny import (
    BOS,
    EACH,
    END,
    FAMILIES,
    IMAGE,
    MORE,
    ONE,
    SIDE,
    START,
    TAG,
    TILES,
    Prompt,
    Words,
    hf,
    ids_of,
    inputs,
    of_ids,
    pair,
    tiny,
    tokenizer,
)
from .modes import CLOSE, MODES, PRESETS, STEPS, answered, check_batch, generated


def run(name: str, preset: str, prompts: tuple[Prompt, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [str(prompt) for prompt in prompts], inputs(name, *prompts)
    return answered(tiny(name), preset, given, words=Words(), names=names, optimize=optimize, **how)


@pytest.mark.parametrize("name", a_third(FAMILIES))
def test_the_contract(name: str) -> None:
    check_adapter(tiny(name), inputs=inputs(name, ONE))
    check_adapter(tiny(name), inputs=inputs(name, TILES))


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"use_cache": False}])
@pytest.mark.parametrize("name", [*FAMILIES, "paligemma2"])
def test_off_is_stock(name: str, how: dict[str, Any]) -> None:
    given = inputs(name, *pair(name))
    stock = torch.stack(generated(tiny(name), given, **how).logits)
    with cdkit.attach(tiny(name), cdkit.load("vcd", alpha=0.0, beta=0.0)):
        off = torch.stack(generated(tiny(name), given, **how).logits)
    assert off.equal(stock)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), covering(FAMILIES, PRESETS))
def test_a_batch_of_unequal_images_is_each_prompt_alone(name: str, preset: str, mode: str) -> None:
    check_batch(functools.partial(run, name, preset), pair(name), mode)


# ---- branches are the stock model on other inputs ------------------------------------------------


@dataclass(frozen=True)
class Doubled(cdkit.PixelDistortion):
    """Pictures with twice their contrast."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return 2 * pixels


def branch_of(name: str, given: dict[str, Tensor], part: cdkit.DistortionStrategy) -> list[Tensor]:
    """The logits of a branch, step after step; the answer is the original branch's."""
    branches = (cdkit.Branch("own", (part,)),)
    method = replace(cdkit.load("vcd", alpha=0.0, beta=0.0), branches=branches)
    attached = cdkit.attach(
        tiny(name), method, processor=Words(), trace=("logits",), optimize=False
    )
    with attached as traced:
        generated(tiny(name), given)
    return [step.logits["own"].float() for step in traced.trace.steps]


def forced(name: str, given: dict[str, Tensor], like: dict[str, Tensor]) -> list[Tensor]:
    """The stock logits for `given`, where the answer is the one to `like`."""
    answer = generated(tiny(name), like).sequences[:, -STEPS:]
    step = iter(range(STEPS))

    def say(ids: Tensor, scores: Tensor) -> Tensor:
        chosen = answer[:, next(step)]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    return list(generated(tiny(name), given, logits_processor=[say]).logits)


@pytest.mark.parametrize("name", [*FAMILIES, "paligemma2"])
def test_a_distorted_picture_is_that_picture(name: str) -> None:
    given = inputs(name, *pair(name))
    found = branch_of(name, given, Doubled())
    wanted = forced(name, given | {"pixel_values": 2 * given["pixel_values"]}, given)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), **CLOSE)


@pytest.mark.parametrize("name", [*FAMILIES, "paligemma2"])
def test_a_rewritten_prompt_is_that_prompt(name: str) -> None:
    """Its positions, its token types and its mask are the stock model's for the new text."""
    prompts = pair(name)
    given = inputs(name, *prompts)
    part = InstructionPrefix("one two three")
    found = branch_of(name, given, part)
    new = Words()("one two three", add_special_tokens=False)["input_ids"]
    rows = []
    for prompt in prompts:
        ids = ids_of(name, prompt)
        slot = ids.index(1) + 1  # behind bos, which follows PaliGemma's images
        rows.append([*ids[:slot], *new, *ids[slot:]])
    other = {key: value for key, value in given.items() if key.startswith("pixel")}
    wanted = forced(name, other | of_ids(name, rows), given)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), **CLOSE)


@dataclass(frozen=True)
class Blind(cdkit.AttentionDistortion):
    """Text sees no image."""

    modifies: ClassVar[frozenset[Any]] = frozenset({"logits"})

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: Any) -> Any:
        return replace(segment, logits=torch.full_like(segment.logits, -torch.inf))


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_text_that_sees_no_image(name: str) -> None:
    """Against the stock decoder, whose own 4-D masks have those cells taken out by hand."""
    model, given = tiny(name), inputs(name, *pair(name))
    found = branch_of(name, given, Blind())
    answer = generated(model, given).sequences[:, -STEPS:]
    for step in range(STEPS):
        ids = torch.cat((given["input_ids"], answer[:, :step]), dim=1)
        later = torch.ones_like(answer[:, :step])
        mask = torch.cat((given["attention_mask"], later), dim=1)
        types = later * (name == "paligemma")
        types = torch.cat((given["token_type_ids"], types), dim=1)
        is_image = ids == IMAGE
        image = model.get_image_features(given["pixel_values"]).pooler_output
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(is_image[..., None], image.flatten(0, -2).to(embeds))
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + (name == "paligemma")
        with torch.no_grad():
            masks = model.create_masks_for_generate(
                config=model.config,
                inputs_embeds=embeds,
                attention_mask=mask,
                **{CACHE: None},
                position_ids=positions,
                token_type_ids=types,
            )
            after = (is_image.cummax(dim=-1).values & ~is_image & mask.bool())[:, None, :, None]
            cut = after & is_image[:, None, None]
            masks = (
                {kind: own & ~cut for kind, own in masks.items()}
                if isinstance(masks, dict)
                else masks & ~cut
            )
            hidden = model.model.language_model(
                inputs_embeds=embeds, attention_mask=masks, position_ids=positions
            ).last_hidden_state[:, -1]
            wanted = model.lm_head(hidden).float()
        torch.testing.assert_close(found[step], wanted, **CLOSE)


# ---- their processors ----------------------------------------------------------------------------


def processor_of(name: str) -> Any:
    """The family's own, small, with a tokenizer of words."""
    marks = {IMAGE: "<image>", START: "<fake_token_around_image>", 99: "<end_of_utterance>"}
    square = {"height": 8, "width": 8}
    pictures: Any
    match name:
        case "idefics3":
            marks |= {TAG: "<global-img>"}
            tags = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
            marks |= {80 + i: tag for i, tag in enumerate(tags)}
            sizes: Any = {
                "size": {"longest_edge": 2 * SIDE},
                "max_image_size": {"longest_edge": SIDE},
            }
            pictures = Idefics3ImageProcessorPil(**sizes)
            words = tokenizer(marks=marks)
            return hf.Idefics3Processor(pictures, words, image_seq_len=EACH[name])
        case "idefics2":
            pictures = Idefics2ImageProcessorPil(
                size={"longest_edge": 8, "shortest_edge": 8}, do_image_splitting=True
            )
            words = tokenizer(marks=marks)
            return hf.Idefics2Processor(pictures, words, image_seq_len=EACH[name])
        case "gemma3":
            marks = {IMAGE: "<soft>", START: "<start_of_image>", END: "<end_of_image>"}
            named = {"image_token": "<soft>", "boi_token": marks[START], "eoi_token": marks[END]}
            words = tokenizer(marks=marks, **named)
            pictures = Gemma3ImageProcessorPil(size=square)
            return hf.Gemma3Processor(pictures, words, image_seq_length=EACH[name])
    pictures = SiglipImageProcessorPil(size=square)
    pictures.image_seq_length = EACH[name]
    words = tokenizer(marks={IMAGE: "<image>"})
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return hf.PaliGemmaProcessor(pictures, words)  # it writes `<s>` itself, behind the image


PICTURE = Image.radial_gradient("L").resize((20, 10)).convert("RGB")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["idefics3", "idefics2", "gemma3", "paligemma"])
def test_with_its_processor(name: str) -> None:
    processor = processor_of(name)
    if name != "idefics2":
        check_adapter(tiny(name), processor=processor)
        return
    # two pictures side by side are written as one that is split
    adapter = adapter_for(tiny(name))
    text = adapter.prompt("is there a cat ?", images=1, processor=processor)
    given = processor(images=[[PICTURE]], text=[text], return_tensors="pt")
    assert given["pixel_values"].shape[1] == 5
    check_adapter(tiny(name), inputs=given)


# ---- where images are ----------------------------------------------------------------------------


def test_tiles_of_a_picture_are_one_image() -> None:
    """Two pictures stand side by side; the first has five tiles."""
    for name, each in (("idefics3", 9), ("smolvlm", 9), ("idefics2", 12)):
        adapter, given = adapter_for(tiny(name)), inputs(name, TILES, ONE)
        index = adapter.image_index(tiny(name), given["input_ids"])
        assert [int((index[0] == image).sum()) for image in (0, 1, 2)] == [5 * each, each, 0]
        assert int(index[1].max()) == 0 and int((index[1] == 0).sum()) == each
        counts = [5 * each, each, each]
        pictures = adapter.split_pixels(tiny(name), given, counts)
        assert [len(picture) for picture in pictures] == [5, 1, 1]
        assert pictures[2].equal(given["pixel_values"][1, :1])


def test_a_black_picture_is_no_padding() -> None:
    """Idefics drops tiles of zeros."""
    adapter, given = adapter_for(tiny("idefics3")), inputs("idefics3", TILES, ONE)
    pictures = adapter.split_pixels(tiny("idefics3"), given, [45, 9, 9])
    black = [torch.zeros_like(picture) for picture in pictures]
    joined = adapter.join_pixels(tiny("idefics3"), black, given)
    kept = (joined != 0).flatten(2).any(dim=-1)
    assert kept.equal((given["pixel_values"] != 0).flatten(2).any(dim=-1))
    assert float(joined.abs().max()) < 1e-300


def test_gemma3_turns_its_layers_differently() -> None:
    rotary = adapter_for(tiny("gemma3")).rotary(tiny("gemma3"))
    assert rotary is not None
    local, whole, again = (own.inverse_frequencies for own in rotary if own is not None)
    assert local.equal(again) and not local.allclose(whole)


# ---- what is refused -----------------------------------------------------------------------------


def test_idefics2_pictures_with_nothing_between_are_refused() -> None:
    """Its processor writes them as it writes the crops of one."""
    given = of_ids(
        "idefics2", [[BOS, 10, START, *[*[IMAGE] * EACH["idefics2"], START] * 2, 20, 21]]
    )
    given["pixel_values"] = inputs("idefics2", Prompt((1, 1), (20, 21)))["pixel_values"]
    words = "an image of 2 tiles .* makes 1 or 5 of a picture.*nothing tells them apart"
    with (
        cdkit.attach(tiny("idefics2"), cdkit.load("cmac")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny("idefics2").generate(**given, max_new_tokens=1)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_without_token_types(name: str) -> None:
    given = inputs(name, ONE)
    del given["token_type_ids"]
    words = f"{type(tiny(name)).__name__} needs token_type_ids beside pixel_values"
    with (
        cdkit.attach(tiny(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny(name).generate(**given, max_new_tokens=1)


@pytest.mark.parametrize(("name", "where"), [("gemma3", "in images"), ("paligemma", "in prompts")])
def test_a_prompt_in_chunks(name: str, where: str) -> None:
    words = re.escape(
        "vcd cannot run with prefill_chunk_size=4: this model's attention is not causal "
        f"{where}, which this splits; leave it out"
    )
    with (
        cdkit.attach(tiny(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny(name).generate(**inputs(name, ONE), max_new_tokens=1, prefill_chunk_size=4)


def test_beyond_the_window() -> None:
    model, given = tiny("gemma3", window=24), inputs("gemma3", ONE)
    with (
        cdkit.attach(model, cdkit.load("cmac")),
        pytest.raises(cdkit.CdkitError, match=r"window keeps 24 tokens .* may reach 30"),
    ):
        model.generate(**given, max_new_tokens=4)
    with cdkit.attach(model, cdkit.load("vcd"), processor=Words()):
        model.generate(**given, max_new_tokens=4)


def test_paligemma2_caps_its_logits() -> None:
    model, given = tiny("paligemma2"), inputs("paligemma2", ONE)
    with torch.no_grad():
        hidden = model.model(**given).last_hidden_state[:, -1]
        wanted = model(**given).logits[:, -1]
        logits = adapter_for(model).logits(model, hidden, norm=False)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-9)


def test_labels_that_ask_for_no_loss() -> None:
    """PaliGemma's processor always returns labels."""
    model, given = tiny("paligemma"), inputs("paligemma", ONE, MORE)
    none = {"labels": torch.full_like(given["input_ids"], -100)}
    with cdkit.attach(model, cdkit.load("vcd")):
        wanted = generated(model, given).sequences
        assert generated(model, given | none).sequences.equal(wanted)
        with torch.no_grad():
            logits = model(**given).logits
            assert model(**given, **none).logits.equal(logits)
        with pytest.raises(cdkit.CdkitError, match="cannot run with labels=Tensor"):
            model.generate(**given, labels=given["input_ids"], max_new_tokens=1)

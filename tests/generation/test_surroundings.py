"""What stands around a run: other configs, other models, other threads, other decoders."""

import copy
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import cdkit
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.combiner import COMBINERS, LogitCombiner, State

Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
hf: Any = transformers  # much of it is not typed
CMAC = cdkit.load("cmac")


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    return make_inputs("is there a cat ?")


def test_a_default_of_the_model_counts_behind_a_given_config(
    make_model: Callable[..., Any], inputs: Inputs
) -> None:
    model = make_model()
    model.generation_config.guidance_scale = 3.0
    given = hf.GenerationConfig(max_new_tokens=2, pad_token_id=0)
    with (
        cdkit.attach(model, CMAC),
        pytest.raises(cdkit.CdkitError, match=r"guidance_scale=3\.0, which the checkpoint's"),
    ):
        model.generate(**inputs, generation_config=given)


def test_padding_is_found_by_a_pad_token_that_is_an_argument(
    make_model: Callable[..., Any], make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    """Else the padding would be part of the digest that decides the noise."""
    model = make_model()
    model.generation_config = hf.GenerationConfig(bos_token_id=1)
    both = make_inputs("is there a cat ?", "is there a cat in the image ?")
    both.pop("attention_mask")
    alone = make_inputs("is there a cat ?")
    with cdkit.attach(model, cdkit.load("vcd")):
        together = logits_of(model, both, pad_token_id=0, max_new_tokens=1)[:, :1]
        apart = logits_of(model, alone, pad_token_id=0, max_new_tokens=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_two_models_of_one_config_object_do_not_touch_each_other(
    make_model: Callable[..., Any], inputs: Inputs, logits_of: Callable[..., Tensor]
) -> None:
    first = make_model(1)
    second = hf.LlavaForConditionalGeneration(first.config).double().eval()
    second.load_state_dict(make_model(2).state_dict(), strict=False)
    assert second.config is first.config
    implementation = first.config.text_config._attn_implementation
    stock = logits_of(second, inputs)
    left = cdkit.attach(first, CMAC).__enter__()
    with cdkit.attach(second, CMAC):
        expected = logits_of(second, inputs)
        left.detach()
        assert torch.equal(logits_of(second, inputs), expected)
    assert torch.equal(logits_of(second, inputs), stock)
    assert first.config.text_config._attn_implementation == implementation


def test_a_model_is_not_copied_while_a_method_is_on(make_model: Callable[..., Any]) -> None:
    model = make_model()
    with (
        cdkit.attach(model, CMAC),
        pytest.raises(cdkit.CdkitError, match=r"leave the block of cdkit\.attach before"),
    ):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_threads_take_turns(model: Any, make_inputs: MakeInputs) -> None:
    prompts = [make_inputs(q) for q in ("is there a cat ?", "is there a dog in the image ?")] * 2
    found: dict[int, Tensor] = {}

    def run(index: int) -> None:
        out = model.generate(**prompts[index], max_new_tokens=4, do_sample=False)
        found[index] = out

    with cdkit.attach(model, CMAC):
        for index in range(len(prompts)):
            run(index)
        alone = dict(found)
        found.clear()
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[i], alone[i]) for i in alone)


class TestSplits:
    def test_more_of_a_prompt_by_a_cache_is_refused_where_a_threshold_spans_it(
        self, model: Any, inputs: Inputs
    ) -> None:
        more = torch.full((1, 2), 7)
        with torch.inference_mode(), cdkit.attach(model, CMAC):
            out = model(**inputs)
            with pytest.raises(cdkit.CdkitError, match="a cache and 2 more tokens"):
                model(input_ids=more, **{CACHE: out[CACHE]})
        with torch.inference_mode(), cdkit.attach(model, cdkit.load("cmac", scope="row")):
            out = model(**inputs)
            model(input_ids=more, **{CACHE: out[CACHE]})

    def test_columns_that_do_not_align_are_refused(
        self, model: Any, inputs: Inputs, processor: Any
    ) -> None:
        with (
            torch.inference_mode(),
            cdkit.attach(model, cdkit.load("icd"), processor=processor),
            pytest.raises(cdkit.CdkitError, match=r"logits of the last \d+ were asked for"),
        ):
            model(**inputs, logits_to_keep=torch.tensor([0]))

    def test_prompts_of_their_own_need_padding_on_the_left(
        self, model: Any, make_inputs: MakeInputs, processor: Any
    ) -> None:
        inputs = make_inputs("is there a cat ?")
        inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 2))
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 2))
        with (
            torch.inference_mode(),
            cdkit.attach(model, cdkit.load("icd"), processor=processor),
            pytest.raises(cdkit.CdkitError, match="pad on the left"),
        ):
            model(**inputs, logits_to_keep=2)


@dataclass(frozen=True)
class Counting(LogitCombiner):
    stateful = True

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: State
    ) -> tuple[Tensor, State]:
        return original, state


def test_a_state_from_step_to_step_needs_a_cache(model: Any, inputs: Inputs) -> None:
    method = cdkit.Method("counting", Counting())
    assert Counting not in COMBINERS.values()
    with (
        cdkit.attach(model, method),
        pytest.raises(cdkit.CdkitError, match="use_cache=False: what it carries"),
    ):
        model.generate(**inputs, max_new_tokens=2, use_cache=False)


class TestDecoders:
    def make(self, make_model: Callable[..., Any], text: Any) -> Any:
        config = copy.deepcopy(make_model().config)
        config.text_config = text
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = hf.LlavaForConditionalGeneration(config)
        model.generation_config = hf.GenerationConfig(pad_token_id=0, bos_token_id=1)
        return model.double().eval()

    def shape(self, make_model: Callable[..., Any]) -> dict[str, Any]:
        text = make_model().config.text_config
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        return {name: getattr(text, name) for name in names} | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
        }

    def test_a_sliding_window_is_no_matter_until_it_is_passed(
        self, make_model: Callable[..., Any], inputs: Inputs, logits_of: Callable[..., Tensor]
    ) -> None:
        length = inputs["input_ids"].shape[1]
        shape = self.shape(make_model)
        model = self.make(make_model, hf.MistralConfig(**shape, sliding_window=length + 3))
        wide = self.make(make_model, hf.MistralConfig(**shape, sliding_window=None))
        with cdkit.attach(model, CMAC), cdkit.attach(wide, CMAC):
            assert torch.equal(
                logits_of(model, inputs, max_new_tokens=3),
                logits_of(wide, inputs, max_new_tokens=3),
            )
            with pytest.raises(cdkit.CdkitError, match=rf"sliding window keeps {length + 3}"):
                model.generate(**inputs, max_new_tokens=4)
        with cdkit.attach(model, cdkit.load("vcd")):
            model.generate(**inputs, max_new_tokens=6)

    @pytest.mark.parametrize(
        ("family", "interleaved"), [("Cohere", True), ("Qwen2", False), ("StableLm", False)]
    )
    def test_the_pairing_of_a_rotary_embedding_is_found_out(
        self, make_model: Callable[..., Any], family: str, interleaved: bool
    ) -> None:
        text = getattr(hf, f"{family}Config")(**self.shape(make_model))
        model = self.make(make_model, text)
        rotary = cdkit.adapter_for(model).rotary(model)
        assert rotary is not None and len(rotary) == len(model.model.language_model.layers)
        assert [own and own.interleaved for own in rotary] == [interleaved] * len(rotary)


@pytest.mark.parametrize(
    ("tower", "strategy", "tokens"),
    [("CLIP", "default", 9), ("CLIP", "full", 10), ("Siglip", "full", 9)],
)
def test_images_side_by_side_are_told_apart(
    make_model: Callable[..., Any], tower: str, strategy: str, tokens: int
) -> None:
    config = copy.deepcopy(make_model().config)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision = getattr(hf, f"{tower}VisionConfig")
    config.vision_config = vision(**shape, num_attention_heads=2, image_size=12, patch_size=4)
    config.vision_feature_select_strategy = strategy
    model = hf.LlavaForConditionalGeneration(config)
    ids = torch.tensor([[1, *[config.image_token_id] * (2 * tokens), 7]])
    index = cdkit.adapter_for(model).image_index(model, ids)
    assert index.tolist() == [[-1, *[0] * tokens, *[1] * tokens, -1]]


class TestNames:
    def test_a_part_is_called_by_its_place_or_by_its_kind(self) -> None:
        for name in ("alpha", "combiner.alpha", "contrast.alpha"):
            assert cdkit.load("cmac", **{name: 2.0}) == cdkit.load("cmac", alpha=2.0)

    def test_two_distortions_of_a_kind_have_a_number(self) -> None:
        noise = {"kind": "diffusion_noise", "step": 1}
        from cdkit.methods.overrides import override
        from cdkit.methods.plain_data import parse_method

        method = parse_method(
            {
                "name": "twice",
                "combiner": {"kind": "contrast"},
                "constraint": "none",
                "branches": [{"distortions": [noise, noise]}],
            }
        )
        changed = override(method, {"diffusion_noise_2.step": 7})
        steps = [d["step"] for d in changed.to_dict()["branches"][0]["distortions"]]
        assert steps == [1, 7]
        with pytest.raises(cdkit.CdkitError, match=r"more than once; say which: .*noise_2\.step"):
            override(method, {"step": 7})


@pytest.mark.usefixtures("as_for_a_user")
def test_what_is_no_model_and_no_method() -> None:
    with pytest.raises(cdkit.CdkitError, match=re.escape("got NoneType; of a pipeline pass its")):
        cdkit.attach(None, CMAC)  # type: ignore[arg-type]
    with pytest.raises(cdkit.CdkitError, match="a preset's name or a path, got None"):
        cdkit.load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cdkit.load("cmac_cmpc", alpha=3.0), "so alpha=3.0 would do nothing"),
        (lambda: cdkit.load("cmac", alphas=[["distorted", 1.0]] * 2), "names a branch twice"),
        (lambda: cdkit.load("cmac", alphas=[1, 2]), "each item of alphas must be a list, got 1"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(cdkit.CdkitError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred"])
def test_a_name_that_a_table_cannot_show(name: str) -> None:
    with pytest.raises(cdkit.CdkitError, match="one line of visible characters, got"):
        replace(CMAC, name=name)


def test_numbers_of_numpy_become_plain_ones() -> None:
    swept = cdkit.load("vcd", alpha=np.float32(0.5), step=np.int64(7))
    assert swept == cdkit.load("vcd", alpha=0.5, step=7)
    assert type(swept.to_dict()["combiner"]["alpha"]) is float


@pytest.mark.usefixtures("as_for_a_user")
def test_lists_that_are_one_text(model: Any) -> None:
    with pytest.raises(cdkit.CdkitError, match="sample_ids must be a list, one name a prompt"):
        cdkit.attach(model, CMAC, sample_ids="ab")
    with pytest.raises(cdkit.CdkitError, match="trace must be a list of names out of logits, "):
        cdkit.attach(model, CMAC, trace=None)  # type: ignore[arg-type]

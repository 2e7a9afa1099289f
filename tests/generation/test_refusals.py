"""What a method cannot run with is refused before the first token, and each message is tested."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import cdkit
from cdkit.interfaces.cache_names import CACHE

Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
hf: Any = transformers  # much of it is not typed
CMAC = cdkit.load("cmac")


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    return make_inputs("is there a cat ?")


@pytest.fixture
def untouched(model: Any) -> Any:
    """A model whose decoder must not be called: a refusal comes before the first token."""

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the decoder ran")

    handle = model.model.language_model.register_forward_pre_hook(called)
    yield model
    handle.remove()


GENERATE: list[tuple[str, dict[str, Any], str]] = [
    ("assistant_model", {"assistant_model": nn.Linear(1, 1)}, "assisted decoding checks tokens"),
    ("prompt lookup", {"prompt_lookup_num_tokens": 3}, "assisted decoding checks tokens"),
    ("quantized cache", {"cache_implementation": "quantized"}, "need the dynamic cache or the st"),
    ("offloaded cache", {"cache_implementation": "offloaded_static"}, "or the static one"),
    ("contrastive search", {"penalty_alpha": 0.6, "top_k": 4}, "contrastive search re-ranks"),
    ("dola", {"dola_layers": "high"}, "it brings its own contrast"),
    ("groups", {"num_beam_groups": 2, "num_beams": 4}, "a custom loop may not keep"),
    ("forced words", {"force_words_ids": [[3]], "num_beams": 2}, "a custom loop may not keep"),
    ("constraints", {"constraints": [object()]}, "a custom loop may not keep"),
    ("a repository", {"custom_generate": "someone/loop"}, "a custom loop may not keep"),
    ("token heads", {"use_mtp": True}, "assisted decoding checks tokens"),
    ("paged cache", {"cache_implementation": "paged"}, "need the dynamic cache or the st"),
    ("custom", {"custom_generate": lambda model, **kwargs: None}, "a custom loop may not keep"),
    (
        "router",
        {"output_router_logits": True},
        "the router logits would hold the rows of every branch",
    ),
    ("attentions", {"output_attentions": True}, r"use trace=\('image_attention',\)"),
    ("guidance", {"guidance_scale": 1.5}, "it adds a second pass of its own"),
    ("healing", {"token_healing": True}, "it rewrites the prompt"),
    ("embeddings", {"inputs_embeds": torch.zeros(1, 3, 32)}, "pass input_ids"),
    ("labels", {"labels": torch.zeros(1, 3).long()}, "methods act at inference"),
]


@pytest.mark.parametrize(
    ("asked", "why"), [case[1:] for case in GENERATE], ids=[case[0] for case in GENERATE]
)
def test_generate_arguments(
    asked: dict[str, Any], why: str, untouched: Any, inputs: Inputs
) -> None:
    name = next(iter(asked))
    with cdkit.attach(untouched, CMAC):
        with pytest.raises(cdkit.CdkitError, match=f"cmac cannot run with {name}=.*{why}"):
            untouched.generate(**inputs, max_new_tokens=2, **asked)


@pytest.mark.parametrize("name", ["prompt_lookup_num_tokens", "output_attentions"])
def test_arguments_that_stand_in_a_generation_config(
    name: str, untouched: Any, inputs: Inputs
) -> None:
    import copy

    config = copy.deepcopy(untouched.generation_config)
    setattr(config, name, 2)
    with cdkit.attach(untouched, CMAC):
        with pytest.raises(cdkit.CdkitError, match=f"cmac cannot run with {name}=2"):
            untouched.generate(**inputs, generation_config=config)


def test_a_generation_config_that_splits_the_prompt(untouched: Any, inputs: Inputs) -> None:
    config = hf.GenerationConfig(max_new_tokens=2, use_cache=False, pad_token_id=0)
    with cdkit.attach(untouched, CMAC):
        with pytest.raises(cdkit.CdkitError, match="cannot run with use_cache=False"):
            untouched.generate(**inputs, generation_config=config)


@pytest.mark.parametrize(
    "asked", [{"output_router_logits": True}, {"labels": torch.zeros(1, 3).long()}], ids=str
)
def test_arguments_of_a_plain_call(asked: dict[str, Any], untouched: Any, inputs: Inputs) -> None:
    name = next(iter(asked))
    with cdkit.attach(untouched, CMAC), torch.no_grad():
        with pytest.raises(cdkit.CdkitError, match=f"cmac cannot run with {name}="):
            untouched(**inputs, **asked)


@pytest.mark.parametrize("scope", ["call", "head"])
@pytest.mark.parametrize("asked", [{"prefill_chunk_size": 4}, {"use_cache": False}], ids=str)
def test_a_split_prompt_with_a_threshold_over_all_of_it(
    scope: str, asked: dict[str, Any], untouched: Any, inputs: Inputs
) -> None:
    (argument,) = (f"{name}={value}" for name, value in asked.items())
    method = cdkit.load("cmac", scope=scope)
    with cdkit.attach(untouched, method):
        with pytest.raises(cdkit.CdkitError, match=argument) as error:
            untouched.generate(**inputs, max_new_tokens=2, **asked)
    assert "the threshold of value_mean_mask" in str(error.value)
    assert "Use scope='row', or leave it out" in str(error.value)


@pytest.mark.parametrize("name", ["icd", "no_image"])
def test_a_changed_prompt_in_chunks(
    name: str, untouched: Any, processor: Any, inputs: Inputs
) -> None:
    with cdkit.attach(untouched, cdkit.load(name), processor=processor):
        with pytest.raises(cdkit.CdkitError, match=r"prefill_chunk_size=4.*prompt of its own"):
            untouched.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)


def test_given_caches(model: Any, inputs: Inputs) -> None:
    with torch.no_grad():
        filled = model(**inputs, use_cache=True)[CACHE]
    fixed = hf.StaticCache(config=model.config.text_config, max_cache_len=40)
    empty = hf.DynamicCache()
    with cdkit.attach(model, CMAC), torch.no_grad():
        length = inputs["input_ids"].shape[1]
        for run in (model.generate, model):
            with pytest.raises(cdkit.CdkitError, match=f"already holds {length} tokens"):
                run(**inputs, **{CACHE: filled})
            with pytest.raises(cdkit.CdkitError, match="StaticCache has a fixed size"):
                run(**inputs, **{CACHE: fixed})
        wanted = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        given = model.generate(**inputs, max_new_tokens=3, do_sample=False, **{CACHE: empty})
    assert given.equal(wanted)


@pytest.mark.parametrize("name", ["cmac", "vcd", "cmac_cmpc", "no_image"])
def test_a_prompt_without_an_image(name: str, untouched: Any, inputs: Inputs) -> None:
    ids = torch.cat((inputs["input_ids"], torch.full_like(inputs["input_ids"], 7)))
    given = {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
    with cdkit.attach(untouched, cdkit.load(name)):
        with pytest.raises(cdkit.CdkitError, match=f"prompt 1 has no image, and {name} is about"):
            untouched.generate(**given, max_new_tokens=2)


def test_a_prompt_without_an_image_where_none_is_needed(model: Any, inputs: Inputs) -> None:
    ids = torch.full_like(inputs["input_ids"], 7)
    with cdkit.attach(model, cdkit.load("plausibility")):
        assert model.generate(input_ids=ids, max_new_tokens=2).shape[1] == ids.shape[1] + 2


def test_pixels_are_missing(untouched: Any, inputs: Inputs) -> None:
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with cdkit.attach(untouched, cdkit.load("vcd")):
        with pytest.raises(
            cdkit.CdkitError, match="branch 'distorted' distorts pixels: pass pixel"
        ):
            untouched.generate(**rest, max_new_tokens=2)


def test_more_pixels_than_images(untouched: Any, inputs: Inputs) -> None:
    given = dict(inputs) | {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
    with cdkit.attach(untouched, cdkit.load("vcd")):
        with pytest.raises(cdkit.CdkitError, match="the prompts have 1 images but 2 were passed"):
            untouched.generate(**given, max_new_tokens=2)


def test_the_processor_is_missing(model: Any) -> None:
    with pytest.raises(
        cdkit.CdkitError, match=r"instruction_prefix writes text .* pass processor="
    ):
        cdkit.attach(model, cdkit.load("icd"))


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_wrong_number_of_sample_ids(names: list[str], untouched: Any, inputs: Inputs) -> None:
    with cdkit.attach(untouched, CMAC, sample_ids=names):
        with pytest.raises(
            cdkit.CdkitError, match=f"sample_ids has {len(names)} names for 1 prompts"
        ):
            untouched.generate(**inputs, max_new_tokens=2)


def test_ids_and_masks_of_other_shapes(untouched: Any, inputs: Inputs) -> None:
    with cdkit.attach(untouched, CMAC):
        with pytest.raises(cdkit.CdkitError, match=r"input_ids of shape \(prompts, tokens\)"):
            untouched.generate(pixel_values=inputs["pixel_values"], max_new_tokens=2)
        wide = dict(inputs) | {"attention_mask": inputs["attention_mask"][:, None, None]}
        with pytest.raises(cdkit.CdkitError, match=r"attention_mask must be \(prompts, tokens\)"):
            untouched.generate(**wide, max_new_tokens=2)


@pytest.mark.usefixtures("as_for_a_user")
def test_a_method_that_is_none(model: Any) -> None:
    with pytest.raises(cdkit.CdkitError, match=r"such as cdkit\.load\('cmac'\), got 'cmac'"):
        cdkit.attach(model, "cmac")  # type: ignore[arg-type]


# ---- models --------------------------------------------------------------------------------------


def test_an_encoder_decoder() -> None:
    config = hf.BartConfig(
        d_model=8,
        vocab_size=11,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        max_position_embeddings=16,
    )
    model = hf.BartForConditionalGeneration(config).eval()
    with pytest.raises(cdkit.CdkitError, match=r"bart is an encoder-decoder: .*cross-attention"):
        cdkit.attach(model, CMAC)


def test_a_family_without_an_adapter() -> None:
    model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11)).eval()
    with pytest.raises(cdkit.CdkitError, match=r"^GPT2LMHeadModel .* has no adapter") as error:
        cdkit.attach(model, CMAC)
    assert "the text of a prompt has no image tokens" in str(error.value)
    assert "cdkit list models --all" in str(error.value)


def test_no_hugging_face_model() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"Linear has no config\.model_type"):
        cdkit.attach(nn.Linear(1, 1), CMAC)


def test_a_model_without_its_head(model: Any) -> None:
    with pytest.raises(cdkit.CdkitError, match="LlavaModel has no output head"):
        cdkit.attach(model.model, CMAC)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_rope_does_not_compose(rope: str, make_model: Callable[..., Any]) -> None:
    model = make_model()
    model.model.language_model.rotary_emb.rope_type = rope
    with pytest.raises(cdkit.CdkitError, match=r"cmac moves positions by RoPE, but .*LlamaModel"):
        cdkit.attach(model, CMAC)
    cdkit.attach(model, cdkit.load("cmac_imd"))  # which moves none


def test_a_decoder_without_rope(make_model: Callable[..., Any]) -> None:
    model = make_model()
    del model.model.language_model.rotary_emb
    with pytest.raises(cdkit.CdkitError, match="how LlamaModel rotates its keys was not found out"):
        cdkit.attach(model, CMAC)


def test_attention_that_cannot_be_hooked(
    make_model: Callable[..., Any], make_inputs: MakeInputs
) -> None:
    model = make_model()
    model.model.language_model._can_set_attn_implementation = lambda: False
    with pytest.raises(cdkit.CdkitError, match="does not take its attention from Hugging Face's"):
        cdkit.attach(model, CMAC)
    with cdkit.attach(model, cdkit.load("vcd")):  # which needs none
        model.generate(**make_inputs("w1"), max_new_tokens=1)


def test_attention_that_only_seems_to_be_hooked(
    make_model: Callable[..., Any], make_inputs: MakeInputs
) -> None:
    """A layer with an attention of its own: found out at its first call, never ignored."""
    model = make_model()
    layer = model.model.language_model.layers[1].self_attn

    def own(hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None

    layer.forward = own
    with cdkit.attach(model, CMAC):
        with pytest.raises(cdkit.CdkitError, match="only 2 of 3 layers of LlamaModel came through"):
            model.generate(**make_inputs("w1"), max_new_tokens=1)


# ---- names and parameters ------------------------------------------------------------------------

NAMES: list[tuple[Callable[[], object], str]] = [
    (lambda: cdkit.load("cmax"), "no method is called 'cmax'. Did you mean 'cmac'? There is: "),
    (lambda: cdkit.load("cmac", gama=2), "no parameter of cmac is called 'gama'. Did you mean"),
    (lambda: cdkit.load("vcd", gamma=2.0), "no parameter of vcd is called 'gamma'"),
    (lambda: cdkit.load("cmac", alpha=-1.0), "alpha must be a finite number >= 0, got -1.0"),
    (lambda: cdkit.load("cmac", alpha=float("nan")), "alpha must be a finite number >= 0, got nan"),
    (lambda: cdkit.load("cmac", beta=1.5), "beta must be in [0, 1] (0: no constraint), got 1.5"),
    (lambda: cdkit.load("cmac", gamma=0.5), "gamma must be a finite number >= 1, got 0.5"),
    (lambda: cdkit.load("cmac", gamma="2"), "gamma must be of type float, got '2'"),
    (lambda: cdkit.load("cmac", scope="rows"), "scope must be one of call, head, row, got 'rows'"),
    (lambda: cdkit.load("cmac", value_mean="dims"), "value_mean must be one of dim, scalar"),
    (lambda: cdkit.load("cmac", first_gap="one"), "first_gap must be one of scaled, unit"),
    (lambda: cdkit.load("cmac", on_empty="ignore"), "on_empty must be one of raise, original"),
    (lambda: cdkit.load("vcd", step=1000), "step must be in [0, 1000), got 1000"),
    (lambda: cdkit.load("vcd", step=True), "step must be of type int, got True"),
    (lambda: cdkit.load("icd", instruction=" "), "instruction must not be empty"),
    (lambda: cdkit.load("icd", place="end"), "place must be one of system, question, got 'end'"),
    (lambda: cdkit.load("sharpening", power=0.0), "power must be a finite number > 0, got 0.0"),
    (lambda: cdkit.load("cmac", alphas=[["x", 1.0]]), "alphas names branch 'x', but cmac has dist"),
    (lambda: cdkit.load("nowhere/file.toml"), "cannot read the method file nowhere/file.toml"),
]


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(("load", "message"), NAMES, ids=[message for _, message in NAMES])
def test_names_and_parameters(load: Callable[[], object], message: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=re.escape(message)) as error:
        load()
    assert str(error.value).count("\n") == 0  # one clear line


def test_numbers_that_are_not_finite_are_out_of_range() -> None:
    for name, parameter in (("cmac", "beta"), ("cmac", "gamma"), ("sharpening", "power")):
        with pytest.raises(cdkit.CdkitError, match=f"{parameter} must be .*got nan"):
            cdkit.load(name, **{parameter: float("nan")})


# ---- images that are not there ------------------------------------------------------------------

IMAGE_METHODS = ["attended_image", "avisc", "cmac", "deco", "icd", "m3id", "no_image", "opera"]
IMAGE_METHODS += ["pai", "plausibility", "random_mask", "sid", "vaf", "vcd", "vdd"]


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_image_tokens_without_pixels(
    name: str, untouched: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """Forgotten; or a second turn, whose text holds the first one's image."""
    method = cdkit.load(name)
    beams = {} if "greedy" in method.modes else {"num_beams": 3}
    for question in ("w1", "w1 w2 w3 w4 w5"):
        given = {k: v for k, v in make_inputs(question).items() if k != "pixel_values"}
        with cdkit.attach(untouched, method, processor=processor):
            with pytest.raises(cdkit.CdkitError, match="pass pixel_values"):
                untouched.generate(**given, max_new_tokens=2, do_sample=False, **beams)


@pytest.mark.parametrize("optimize", [True, False])
def test_image_tokens_without_pixels_in_a_plain_call(
    optimize: bool, model: Any, inputs: Inputs
) -> None:
    given = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with cdkit.attach(model, CMAC, optimize=optimize), torch.no_grad():
        with pytest.raises(cdkit.CdkitError, match="prompt 0 has image tokens, but no image came"):
            model(**given)
        cache = model(**inputs, use_cache=True, logits_to_keep=1)[CACHE]
        second = {"input_ids": given["input_ids"], "position_ids": torch.arange(30, 31)[None]}
        with pytest.raises(cdkit.CdkitError, match="the new tokens hold an image"):
            model(**second, **{CACHE: cache})


@pytest.mark.parametrize("name", ["vcd", "cmac", "plausibility"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_over_the_image(name: str, whole: bool, untouched: Any, inputs: Inputs) -> None:
    image = inputs["input_ids"][0] == untouched.config.image_token_id
    columns = image.nonzero()[:, 0] if whole else image.nonzero()[:2, 0]
    mask = inputs["attention_mask"].clone()
    mask[0, columns] = 0
    with cdkit.attach(untouched, cdkit.load(name)):
        told = f"attention_mask is 0 on {len(columns)} image tokens of prompt 0"
        with pytest.raises(cdkit.CdkitError, match=told):
            untouched.generate(**dict(inputs) | {"attention_mask": mask}, max_new_tokens=2)


def test_other_ways_into_a_foreign_loop(make_model: Callable[..., Any], inputs: Inputs) -> None:
    import functools

    model = make_model()
    foreign = "a custom loop may not keep to HF's contract"
    with cdkit.attach(model, CMAC):
        with pytest.raises(cdkit.CdkitError, match=foreign):
            model.generate_batch(inputs["input_ids"].tolist())
        with pytest.raises(cdkit.CdkitError, match=foreign):
            model.init_continuous_batching()
    model.generate = functools.partial(lambda model: None, model=model)
    with pytest.raises(cdkit.CdkitError, match=f"brings a generate of its own, and {foreign}"):
        cdkit.attach(model, CMAC)


# ---- what the checkpoint asks for, and not the user ----------------------------------------------

HARMLESS: list[dict[str, Any]] = [
    {"cache_implementation": "hybrid"},
    {"cache_implementation": "hybrid_chunked"},
    {"cache_implementation": "sliding_window"},
    {"cache_implementation": "offloaded"},
    {"use_cache": False},
    {"prefill_chunk_size": 4},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"num_beam_groups": 1, "guidance_scale": 1.0, "penalty_alpha": 0.0, "dola_layers": None},
    {"penalty_alpha": 0.6, "top_k": 1},
]


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("said", HARMLESS, ids=str)
def test_a_checkpoint_that_asks_for_what_no_token_depends_on(
    said: dict[str, Any],
    optimize: bool,
    make_model: Callable[..., Any],
    inputs: Inputs,
) -> None:
    model, method = make_model(), cdkit.load("cmac", scope="call")
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with cdkit.attach(model, method, optimize=optimize):
        wanted = model.generate(**inputs, **asked)
    for name, value in said.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    with cdkit.attach(model, method, optimize=optimize):
        assert model.generate(**inputs, **asked).equal(wanted)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
        ({"dola_layers": "high"}, "dola_layers='high'"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"num_beam_groups": 2}, "num_beam_groups=2"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=2"),
    ],
    ids=str,
)
def test_a_checkpoint_that_asks_for_what_is_refused(
    said: dict[str, Any], name: str, make_model: Callable[..., Any], inputs: Inputs
) -> None:
    model = make_model()
    for key, value in said.items():
        setattr(model.generation_config, key, value)
    told = f"cmac cannot run with {name}, which the checkpoint's generation_config asks for: "
    with cdkit.attach(model, CMAC):
        with pytest.raises(cdkit.CdkitError, match=re.escape(told)) as error:
            model.generate(**inputs, max_new_tokens=2)
        assert f"Set model.generation_config.{name.split('=')[0]} = None" in str(error.value)
        model.generate(**inputs, max_new_tokens=2, **dict.fromkeys(said))  # as in stock generate


def test_a_mode_that_the_checkpoint_asks_for(
    make_model: Callable[..., Any], inputs: Inputs
) -> None:
    model = make_model()
    model.generation_config.do_sample = True
    with cdkit.attach(model, cdkit.load("opera")):
        told = "mode 'sample', do_sample=True from the checkpoint's generation_config"
        with pytest.raises(cdkit.CdkitError, match=told):
            model.generate(**inputs, max_new_tokens=2)

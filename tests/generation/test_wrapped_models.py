"""Models inside of PEFT, accelerate, torch.compile and pipelines, and in half precision."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import accelerate  # type: ignore[import-untyped]
import accelerate.hooks  # type: ignore[import-untyped]
import peft
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import cdkit

from .presets import ACTIVE_GREEDY, in_turn, takes_plain_calls

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
Run = Callable[..., Tensor]
METHODS = ("cmac", "vcd", "icd")
# of the libraries, none of it about what is called here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is dep:DeprecationWarning"),
]


@pytest.fixture
def own(make_model: Callable[..., Any]) -> Any:
    return make_model()


@pytest.fixture
def lora(own: Any) -> Any:
    """Random adapters in the decoder's attention: they change the logits."""
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        wrapped = peft.get_peft_model(own, config)
    return wrapped.eval().double()


@pytest.mark.parametrize("name", METHODS)
def test_lora(
    name: str, lora: Any, processor: Any, make_inputs: MakeInputs, logits_of: Run
) -> None:
    """On the wrapper and on its base the same; equal to the method on the merged weights."""
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(lora, inputs)
    merged = copy.deepcopy(lora).merge_and_unload()
    asked = {"processor": processor, "sample_ids": ["a", "b"]}
    with cdkit.attach(merged, cdkit.load(name), **asked):
        wanted = logits_of(merged, inputs)
    with lora.disable_adapter(), cdkit.attach(lora, cdkit.load(name), **asked):
        without = logits_of(lora, inputs)
    for attached in (lora, lora.get_base_model()):
        with cdkit.attach(attached, cdkit.load(name), **asked):
            for run in (lora, lora.get_base_model()):
                torch.testing.assert_close(logits_of(run, inputs), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(wanted, without) and not torch.allclose(wanted, stock)
    assert logits_of(lora, inputs).equal(stock)


def test_lora_in_a_plain_call(lora: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    with torch.no_grad(), cdkit.attach(lora, cdkit.load("cmac")):
        assert lora(**inputs).logits.equal(lora.get_base_model()(**inputs).logits)
        assert lora(**inputs).logits.isneginf().any()  # the constraint is on


def test_prompt_tuning_is_refused(own: Any) -> None:
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_layers=3,
        num_attention_heads=4, num_transformer_submodules=1,
    )  # fmt: skip
    wrapped = peft.get_peft_model(own, config).eval()
    with pytest.raises(cdkit.CdkitError, match="PromptTuningConfig puts virtual tokens before"):
        cdkit.attach(wrapped, cdkit.load("cmac"))


class Wrapper(torch.nn.Module):
    """As users write them: it looks like the model inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.generate = inner, inner.config, inner.generate


def test_a_wrapper_names_the_model_inside(own: Any) -> None:
    for wrapped, name in ((Wrapper(own), "inner"), (torch.nn.DataParallel(own), "module")):
        asked = rf"a wrapper around Llava.*: attach to model\.{name}, and call"
        with pytest.raises(cdkit.CdkitError, match=asked):
            cdkit.attach(wrapped, cdkit.load("vcd"))


def test_a_users_own_attention_is_not_replaced(
    own: Any, make_inputs: MakeInputs, logits_of: Run
) -> None:
    """It may compute anything, so it is held against cdkit's first."""

    def sharper(module: Any, query: Tensor, *given: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, 1.5 * query, *given, **kwargs)

    transformers.AttentionInterface.register("sharper", sharper)
    transformers.AttentionMaskInterface.register("sharper", sdpa_mask)
    try:
        own.set_attn_implementation("sharper")
        with (
            cdkit.attach(own, cdkit.load("cmac")),
            pytest.raises(cdkit.CdkitError, match=r"attention is not that of Llava.* as vcd$"),
        ):
            logits_of(own, make_inputs(*QUESTIONS))
        with cdkit.attach(own, cdkit.load("vcd")):
            assert logits_of(own, make_inputs(*QUESTIONS)).isfinite().any()
    finally:
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            registry._global_mapping.pop("sharper")


class Counting(accelerate.hooks.ModelHook):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("name", METHODS)
def test_accelerate_hooks_go_on(
    name: str, own: Any, processor: Any, make_inputs: MakeInputs, logits_of: Run
) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(own, cdkit.load(name), processor=processor):
        wanted = logits_of(own, inputs, max_new_tokens=3)
    decoder, attention = own.model.language_model, own.model.language_model.layers[0].self_attn
    hooks = {module: Counting() for module in (own, decoder, attention, own.lm_head)}
    for module, hook in hooks.items():
        accelerate.hooks.add_hook_to_module(module, hook)
    hooked = {module: module.forward for module in hooks}
    with cdkit.attach(own, cdkit.load(name), processor=processor):
        assert logits_of(own, inputs, max_new_tokens=3).equal(wanted)
    assert all(hook.calls >= 3 for hook in hooks.values())
    assert all(module.forward is forward for module, forward in hooked.items())
    for module in hooks:
        accelerate.hooks.remove_hook_from_module(module)
    with cdkit.attach(own, cdkit.load(name), processor=processor):
        assert logits_of(own, inputs, max_new_tokens=3).equal(wanted)


def test_weights_offloaded_by_accelerate(own: Any, make_inputs: MakeInputs, logits_of: Run) -> None:
    inputs, whole = make_inputs(*QUESTIONS), copy.deepcopy(own)  # nothing is known of `own` yet
    stock = logits_of(own, inputs)
    with cdkit.attach(whole, cdkit.load("cmac")):
        wanted = logits_of(whole, inputs)
    accelerate.cpu_offload(own, execution_device=torch.device("cpu"))
    assert own.lm_head.weight.device.type == "meta"
    with cdkit.attach(own, cdkit.load("cmac")):
        assert logits_of(own, inputs).equal(wanted)
    assert logits_of(own, inputs).equal(stock)


@pytest.mark.parametrize("part", ["whole", "in place", "layer"])
def test_compiled_models_are_refused(part: str, own: Any) -> None:
    model: Any = own
    if part == "whole":
        model = torch.compile(own)
    elif part == "in place":
        own.compile()
    else:
        layer = own.model.language_model.layers[0]
        layer.forward = torch.compile(layer.forward)
    with pytest.raises(cdkit.CdkitError, match=r"compiled with torch\.compile"):
        cdkit.attach(model, cdkit.load("cmac"))


@pytest.mark.parametrize("name", ["cmac", "vcd", "icd"])
def test_a_pipeline(
    name: str, own: Any, processor: Any, image: Callable[[int], Image.Image]
) -> None:
    hf: Any = transformers  # much of it is not typed
    pipeline = hf.ImageTextToTextPipeline(model=own, processor=processor)
    asked: dict[str, Any] = {
        "text": "USER: <image> is there a cat ? ASSISTANT:",
        "generate_kwargs": {"max_new_tokens": 5, "do_sample": False},
        "return_full_text": False,
    }
    stock = pipeline(images=image(3), **asked)[0]["generated_text"]
    with cdkit.attach(own, cdkit.load(name), processor=processor):
        given = pipeline(images=image(3), **asked)[0]["generated_text"]
        inputs = processor(images=[image(3)], text=[asked["text"]], return_tensors="pt")
        ids = own.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert given.strip() == processor.tokenizer.decode(ids[0, -5:]) != stock.strip()


@pytest.fixture(scope="module")
def model_in(make_model: Callable[..., Any]) -> Callable[[torch.dtype], Any]:
    """The model in a dtype, made once."""
    return functools.cache(lambda dtype: make_model(dtype=dtype))


@pytest.mark.parametrize("name", in_turn(ACTIVE_GREEDY, 3))
def test_half_precision(
    name: str,
    model_in: Callable[[torch.dtype], Any],
    processor: Any,
    make_inputs: MakeInputs,
) -> None:
    """It runs, its logits are near those in float64, and they come out in float32."""
    inputs = make_inputs(*QUESTIONS)
    names, method = ["a", "b"], cdkit.load(name)
    first = {}
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        model = model_in(kind)
        attached = cdkit.attach(
            model, method, processor=processor, sample_ids=names, trace=("logits",)
        )
        with attached as run, torch.no_grad():
            model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
            if takes_plain_calls(method):
                model(**inputs, logits_to_keep=1)
        first[kind] = run.trace.steps[0]
    for dtype, within in ((torch.bfloat16, 0.15), (torch.float16, 0.05)):
        out = first[dtype].combined
        assert out is not None and out.dtype == torch.float32 and not out.isnan().any()
        for branch, wanted in first[torch.float64].logits.items():
            error = (first[dtype].logits[branch].double() - wanted).abs().mean()
            assert error < within, f"{branch} in {dtype}"


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_heads(
    heads: int, make_model: Callable[..., Any], make_inputs: MakeInputs, logits_of: Run
) -> None:
    """Grouped-query heads are the same model as with the keys and values of each group repeated."""
    grouped = make_model(num_key_value_heads=heads)
    full = make_model(num_key_value_heads=4)
    state = grouped.state_dict()
    for name, weight in state.items():
        if "language_model" in name and name.endswith(("k_proj.weight", "v_proj.weight")):
            blocks = weight.view(heads, 8, -1).repeat_interleave(4 // heads, dim=0)
            state[name] = blocks.flatten(0, 1)
    full.load_state_dict(state)
    inputs = make_inputs(*QUESTIONS)
    for method in (cdkit.load("cmac"), cdkit.load("imccd", scope="head")):
        runs = []
        for model in (grouped, full):
            with cdkit.attach(model, method):
                runs.append(logits_of(model, inputs))
        torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-5)

"""What big models bring, on tiny ones: half precision, layers elsewhere, int8 weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import accelerate.hooks  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

import cdkit

from .modes import PRESETS
from .saved import save_qwen2_vl
from .tiny import Words, inputs, tiny

FAMILIES = ("qwen3_vl", "gemma3", "internvl", "instructblip")
"""Axes and deeper levels; masks of its own; tiles; an inner language model."""
CHIEF = ("cmac", "icd")
"""Those that act at the most places: attention and positions; the prompt, and an encoder of it."""
CPU = torch.device("cpu")
# of the libraries, none of it about what is called here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is dep:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules"),
]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def own(family: str) -> Any:
    return copy.deepcopy(tiny(family))


def logits_of(model: Any, family: str, method: str | None, **how: Any) -> Tensor:
    """[steps, rows, vocab], of two prompts with unequal images; those of the stock model too."""
    given = inputs(family, 0, 1)
    given["pixel_values"] = given["pixel_values"].to(model.dtype)
    asked: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, **how}
    asked |= {"output_logits": True, "return_dict_in_generate": True}
    if method is None:
        return torch.stack(model.generate(**given, **asked).logits)
    kept: dict[str, Any] = {"processor": Words(), "sample_ids": ["a", "b"]}
    with cdkit.attach(model, cdkit.load(method), **kept):
        return torch.stack(model.generate(**given, **asked).logits)


# ---- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_half_precision(name: str, family: str) -> None:
    """Near the logits in float64, and in float32 where they are combined."""
    kept: dict[str, Any] = {"processor": Words(), "sample_ids": ["a", "b"]}
    kept["trace"] = ("logits",)
    first = {}
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        own = copy.deepcopy(tiny(family)).to(kind)
        given = inputs(family, 0, 1)
        given["pixel_values"] = given["pixel_values"].to(kind)
        with cdkit.attach(own, cdkit.load(name), **kept) as ran, torch.no_grad():
            own.generate(**given, max_new_tokens=2, do_sample=False, num_beams=2)
        first[kind] = ran.trace.steps[0]
    for dtype, within in ((torch.bfloat16, 0.2), (torch.float16, 0.05)):
        combined = first[dtype].combined
        assert combined is not None and combined.dtype == torch.float32
        assert not combined.isnan().any()
        for branch, wanted in first[torch.float64].logits.items():
            off = (first[dtype].logits[branch].double() - wanted).abs().mean()
            assert off / wanted.abs().mean() < within, f"{branch} in {dtype}"


# ---- layers elsewhere ----------------------------------------------------------------------------


def spread(model: nn.Module, places: tuple[str, ...]) -> dict[str, str]:
    """A device map: the decoder's layers in turn at these places, all else on the CPU."""
    layers = list(cdkit.adapter_for(model).layers(model))

    def below(name: str, module: nn.Module) -> dict[str, str]:
        turn = [place for place, layer in enumerate(layers) if layer is module]
        if turn:
            return {name: places[turn[0] % len(places)]}
        inside = list(module.modules())
        if not any(layer in inside for layer in layers):
            return {name: "cpu"}
        found = {n: "cpu" for n, _ in module.named_parameters(recurse=False)}
        for child, inner in module.named_children():
            found |= below(f"{name}.{child}".lstrip("."), inner)
        return found

    return below("", model)


@pytest.mark.parametrize("name", CHIEF)
def test_a_device_map_with_layers_on_disk(name: str, family: str, own: Any, tmp_path: Path) -> None:
    # of the shared model: nothing is known of `own` yet
    wanted, stock = (logits_of(tiny(family), family, method) for method in (name, None))
    places: dict[str, Any] = dict(spread(own, ("cpu", "disk")))
    main: Any = "cpu"  # by its name, or accelerate takes it for an accelerator
    accelerate.dispatch_model(own, places, main_device=main, offload_dir=tmp_path)
    layers = cdkit.adapter_for(own).layers(own)
    where = [{p.device.type for p in layer.parameters()} for layer in layers]
    assert {"meta"} in where and {"cpu"} in where
    assert logits_of(own, family, name).equal(wanted)
    assert logits_of(own, family, None).equal(stock)


@pytest.mark.parametrize("name", CHIEF)
def test_weights_offloaded_to_the_cpu(name: str, family: str, own: Any) -> None:
    wanted = logits_of(tiny(family), family, name)
    accelerate.cpu_offload(own, execution_device=CPU)
    assert {p.device.type for p in own.parameters()} == {"meta"}
    if family == "instructblip":  # its generate reads the queries outside of any module's forward
        with pytest.raises(NotImplementedError, match="meta tensor"):
            logits_of(own, family, None)
        return
    assert logits_of(own, family, name).equal(wanted)


class Moved(accelerate.hooks.AlignDevicesHook):  # type: ignore[misc]
    """As at the border of two devices: what comes in is a copy, what goes out another."""

    def __init__(self) -> None:
        super().__init__(io_same_device=True)
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        moved: Any = super().pre_forward(module, *args, **kwargs)
        return copied(moved[0]), copied(moved[1])

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return copied(super().post_forward(module, output))


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    if type(value) is dict:
        return {key: copied(part) for key, part in value.items()}
    return value


@pytest.mark.parametrize("name", CHIEF)
def test_layers_behind_a_border(name: str, family: str, own: Any) -> None:
    """Nothing may depend on tensors staying the same objects from layer to layer."""
    wanted = logits_of(own, family, name)
    hooks = [Moved() for _ in cdkit.adapter_for(own).layers(own)]
    for hook, layer in zip(hooks, cdkit.adapter_for(own).layers(own), strict=True):
        accelerate.hooks.add_hook_to_module(layer, hook)
    assert logits_of(own, family, name).equal(wanted)
    assert all(hook.calls >= 3 for hook in hooks)


def test_a_device_map_of_load_model(tmp_path: Path) -> None:
    folder = save_qwen2_vl(tmp_path / "saved")
    whole, _ = cdkit.load_model(folder)
    for device_map in ("auto", "cpu", dict.fromkeys(spread(whole, ("cpu",)), "cpu")):
        model, _ = cdkit.load_model(folder, dtype=torch.bfloat16, device_map=device_map)
        assert model.dtype == torch.bfloat16
        assert type(cdkit.adapter_for(model)) is cdkit.ADAPTERS["qwen2_vl"]


# ---- other linear layers -------------------------------------------------------------------------


class Int8(nn.Module):
    """As a quantised layer: its weight is integers, and a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), False)
        self.scale = nn.Parameter(scale, False)
        self.bias = linear.bias

    def full(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.full(), self.bias)


class Halves(nn.Module):
    """As a layer whose outputs are computed at two places and put together."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(linear.weight.detach().clone().chunk(2))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        made = torch.cat([nn.functional.linear(x, weight) for weight in self.weights], dim=-1)
        return made if self.bias is None else made + self.bias


def replace_linear(model: Any, make: Callable[[nn.Linear], nn.Module]) -> int:
    """The linear layers inside the decoder's; how many."""
    count = 0
    for layer in cdkit.adapter_for(model).layers(model):
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, make(child))
                    count += 1
    return count


@pytest.mark.parametrize("name", CHIEF)
def test_quantised_weights(name: str, family: str, own: Any) -> None:
    """The same as an ordinary model with the weights that the integers stand for."""
    rounded = copy.deepcopy(own)

    def unpacked(linear: nn.Linear) -> nn.Module:
        linear.weight = nn.Parameter(Int8(linear).full())
        return linear

    assert replace_linear(rounded, unpacked) == replace_linear(own, Int8) > 0
    wanted = logits_of(rounded, family, name)
    torch.testing.assert_close(logits_of(own, family, name), wanted, rtol=0, atol=1e-9)
    assert not torch.allclose(wanted, logits_of(tiny(family), family, name))


@pytest.mark.parametrize("name", CHIEF)
def test_sharded_layers(name: str, family: str, own: Any) -> None:
    wanted = logits_of(own, family, name)
    assert replace_linear(own, Halves) > 0
    torch.testing.assert_close(logits_of(own, family, name), wanted, rtol=0, atol=1e-9)


def test_heads_in_other_processes_are_refused(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has some of the heads cannot take a threshold over all of them."""
    monkeypatch.setattr(type(own), "tp_size", 2)
    with pytest.raises(cdkit.CdkitError, match=r"spread over 2 processes .* device_map"):
        cdkit.attach(own, cdkit.load("cmac"))
    cdkit.attach(own, cdkit.load("vcd"))

"""A tiny model of each of transformers' image-text types, and what cdkit runs on it.

`every_type.json` has the configuration of each type that has no tiny model elsewhere in the tests,
and the arguments of `generate` for one prompt; `random` is the shape of random numbers, and with
`frames` "first" a patch has its frames one after the other, not each colour in all frames.
`python tests/models/every_type.py` writes models/every_type.toml anew; names of types after it are
those that are run again.
"""

import importlib
import json
import re
import sys
import tomllib
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

import cdkit
from cdkit.interfaces.model_adapter import ADAPTERS

hf: Any = transformers
HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "models" / "every_type.toml"
DATA: dict[str, Any] = json.loads((HERE / "every_type.json").read_text())
CAUSAL = ("phi4_multimodal",)
"""Types that read images and that transformers counts among the causal models alone."""
TYPES = tuple(sorted((*vars(modeling_auto)["MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"], *CAUSAL)))
METHODS = {
    "inputs": "no_image",
    "pixels": "vcd",
    "attention": "pai",
    "positions": "cmac",
    "layers": "dola",
}
"""What a method changes or reads, and a method that does so."""
NEEDS = {"fast_vlm": "timm", "gemma3n": "timm", "perception_lm": "timm"}
"""Types whose image encoder is of another package, which needs torchvision. Where it is missing,
what was written about them stays as it is."""


@dataclass
class Ran:
    """What cdkit runs on a type."""

    adapter: str
    """`own`, `generic` or `none`."""
    runs: list[str] = field(default_factory=list)
    """Keys of `METHODS`."""
    refused: dict[str, str] = field(default_factory=dict)
    """Key of `METHODS` -> why it is refused; `all` where no method runs."""
    needs: str = ""
    """The package that the type needs to be loaded."""


def is_missing(package: str | None) -> bool:
    """Whether a package of `NEEDS`, or what it needs, cannot be imported here."""
    if package is None:
        return False
    try:
        importlib.import_module(package)
    except ImportError:
        return True
    return False


def tiny(name: str) -> tuple[Any, dict[str, Tensor] | None]:
    """A model with random weights, and a prompt; None where its type is refused whatever it gets.

    Of an encoder-decoder a configuration is enough.
    """
    from . import generic_tiny, test_fuyu, tiny  # not by the writer of the table

    if name == "fuyu":
        return test_fuyu.tiny(), test_fuyu.inputs(0)
    if name == "llama4":  # its configuration is enough, too
        from . import test_llama4

        return test_llama4.model_of(), None
    if name in ADAPTERS and name not in NEEDS:
        return tiny.tiny(name), tiny.inputs(name, 0)
    if name in generic_tiny.UNKNOWN:
        family, model = generic_tiny.UNKNOWN[name], tiny.made(generic_tiny.UNKNOWN[name])
        with_prompt = family.prompt is not generic_tiny._never
        return model, generic_tiny.inputs(name, 0) if with_prompt else None
    given = DATA[name]
    if given["config"] is None or hf.AutoConfig.for_model(name).is_encoder_decoder:
        stand_in: Any = nn.Module()
        stand_in.config = SimpleNamespace(model_type=name, is_encoder_decoder=True)
        return stand_in, None
    return made(name, given["config"]), prompt(given.get("inputs"), given["config"])


def made(name: str, config: dict[str, Any]) -> Any:
    """A model with random weights, in float32; its answers never end."""
    cls = getattr(hf, vars(modeling_auto)["MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"][name])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = cls(hf.AutoConfig.for_model(name, **config)).eval()
        for own, weight in model.named_parameters():
            if weight.ndim < 2 or bool((weight == weight.flatten()[0]).all()):
                weight.add_(torch.randn_like(weight) * 0.1)
                continue
            sharp = own.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight"))
            embeds = "embed_tokens" in own or "position_embedding" in own
            fan = 1.0 if embeds else weight[0].numel() ** 0.5
            weight.normal_(std=(2.0 if sharp else 1.0) / fan)
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def prompt(given: dict[str, Any] | None, config: dict[str, Any]) -> dict[str, Tensor] | None:
    """The arguments of `generate`."""
    if given is None:
        return None
    inputs = {}
    for name, value in given.items():
        if not isinstance(value, dict):
            inputs[name] = torch.tensor(value)
            if name == "pixel_attention_mask":
                inputs[name] = inputs[name].bool()
            continue
        shape, random = value["random"], torch.Generator().manual_seed(1)
        inputs[name] = torch.randn(shape, generator=random)
        side = config.get("vision_config", {}).get("patch_size")
        if "image_grid_thw" in given and len(shape) == 2 and shape[1] == 6 * side**2:
            # a patch repeats a still picture
            whole = (1, 3) if value.get("frames") == "first" else (3, 1)
            still = inputs[name][:, : 3 * side**2].view(-1, *whole, side**2)
            inputs[name] = still.expand(-1, *(max(2, n) for n in whole), -1).reshape(shape)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def ran(name: str) -> Ran:
    """Run a method of each kind on the type."""
    model, inputs = tiny(name)
    try:
        cdkit.adapter_for(model)
    except cdkit.CdkitError as error:
        return Ran("none", refused={"all": reason(error)})
    assert inputs is not None, f"{name} has an adapter, and no prompt here"
    found = Ran("own" if name in ADAPTERS else "generic", needs=NEEDS.get(name, ""))
    stock = answer(model, inputs)
    for kind, method in METHODS.items():
        try:
            with cdkit.attach(model, cdkit.load(method)):
                logits = answer(model, inputs)
        except cdkit.CdkitError as error:
            found.refused[kind] = reason(error)
            continue
        assert not logits.equal(stock), f"{method} changes nothing on {name}"
        found.runs.append(kind)
    assert answer(model, inputs).equal(stock), f"{name} is not as it was"
    return found if found.runs else Ran("none", refused={"all": found.refused["inputs"]})


def answer(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The logits of the second token."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            **inputs, max_new_tokens=2, do_sample=False, num_beams=1, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    logits: Tensor = out.logits[1]
    return logits


def reason(error: cdkit.CdkitError) -> str:
    """The reason in a refusal: without what is refused, before it, and the advice, after it."""
    said = re.sub(
        r"^.*?(cannot stand in|does not fit|is not known|not found out|that of \w+): ",
        "",
        f"{error}",
    )
    said = re.sub(r"^\w+ moves positions by RoPE, but ", "", said)
    said = re.sub(r"(\. No adapter can|\. To add a family|; use |; `cdkit list).*$", "", said)
    return said.rstrip(".")


def written(again: Collection[str] = TYPES) -> Iterator[str]:
    """models/every_type.toml, line by line; of the types in `again` what runs now."""
    yield "# What cdkit runs on each image-text type of transformers, on tiny random models."
    yield "# Written by `python tests/models/every_type.py`; a test runs each type again."
    before = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    for name in TYPES:
        keeps = name not in again or is_missing(NEEDS.get(name))
        found = Ran(**before[name]) if keeps else ran(name)
        yield f'\n["{name}"]'
        yield f'adapter = "{found.adapter}"'
        yield f"runs = {json.dumps(found.runs)}"
        if found.needs:
            yield f'needs = "{found.needs}"'
        for kind, why in found.refused.items():
            yield f"refused.{kind} = {json.dumps(why)}"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    this = importlib.import_module("models.every_type")
    lines = "\n".join(this.written(sys.argv[1:] or TYPES)) + "\n"
    TABLE.write_text(lines)

"""`compile_config`: the same answers, and a number of graphs that lengths do not raise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from generation.presets import ACTIVE
from transformers import CompileConfig

import cdkit
from cdkit.errors import CdkitWarning

TESTS = Path(__file__).parents[1]
QUICK = ("cmac", "vcd")
GRAPHS = 2
"""One of the first prompt's lengths, one of any."""


def compiled(backend: str, *names: str) -> dict[str, list[dict[str, Any]]]:
    """What `tests/execution/compiled.py` prints."""
    command = [sys.executable, "-m", "execution.compiled", backend, *names]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, prompts in found.items():
        graphs = [prompt["graphs"] for prompt in prompts]
        refused = [prompt["refused"] for prompt in prompts]
        assert any(refused) == all(refused), name
        assert graphs[0] == (not refused[0]), (
            f"{name}: 19 steps of growing length took {graphs[0]} graphs"
        )
        assert graphs[-1] <= GRAPHS, f"{name}: prompts of other lengths took {graphs[-1]} graphs"
        for prompt in prompts:
            assert prompt["same_tokens"], name
            assert prompt["error"] < 1e-9, name


@pytest.mark.slow  # it compiles for half a minute
def test_graphs_do_not_grow_with_the_lengths() -> None:
    check(compiled("eager", *QUICK))


@pytest.mark.slow  # half a minute on one core
def test_graphs_of_beams() -> None:
    check(compiled("beams", *QUICK))


@pytest.mark.slow  # two minutes on one core
def test_graphs_of_all_methods() -> None:
    found = compiled("eager", *(n for n in ACTIVE if cdkit.load(n).loop is None))
    check(found)
    for name, prompts in found.items():
        if name != "alone":  # changes of hidden states, and what steps remember, have no graph
            method = cdkit.load(name)
            stream = isinstance(method.readout, cdkit.StreamReadout)
            outside = method.state_interventions or method.remembering or stream
            assert prompts[0]["refused"] == bool(outside), name


@pytest.mark.slow  # a minute on one core, with a C++ compiler
def test_inductor() -> None:
    check(compiled("inductor", *QUICK))


@pytest.mark.parametrize(
    "wrong",
    [
        {"graphs": 19},
        {"refused": True},
        {"same_tokens": False},
        {"error": 1e-6},
        {"error": float("nan")},
    ],
)
def test_what_the_checks_above_find(wrong: dict[str, Any]) -> None:
    right = {"graphs": 1, "refused": False, "same_tokens": True, "error": 0.0}
    check({"cmac": [right, right]})
    with pytest.raises(AssertionError, match="cmac"):
        check({"cmac": [right | wrong, right]})


# ---- where nothing can be compiled ---------------------------------------------------------------

STATIC: dict[str, Any] = {"cache_implementation": "static"}
CONFIG = CompileConfig(backend="eager", mode=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("cmac", {}, "pass cache_implementation='static' as well"),
        ("opera", STATIC | {"num_beams": 3}, "opera brings a loop of its own"),
    ],
)
def test_it_is_said(
    name: str, asked: dict[str, Any], why: str, model: Any, processor: Any, make_inputs: Any
) -> None:
    inputs = make_inputs("is there a cat ?")
    asked = {"max_new_tokens": 2, "do_sample": False} | asked
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        wanted = model.generate(**inputs, **asked)
        with pytest.warns(CdkitWarning, match=f"compile_config changes nothing here: {why}"):
            given = model.generate(**inputs, **asked, compile_config=CONFIG)
    assert given.equal(wanted)


def test_layers_that_slide(make_inputs: Any, make_model: Any) -> None:
    model = make_model()
    config = model.model.language_model.config
    config.layer_types = ["sliding_attention"] + ["full_attention"] * 2
    config.sliding_window = 100
    with cdkit.attach(model, cdkit.load("vcd")):
        with pytest.warns(CdkitWarning, match="some of the model's layers keep a window"):
            model.generate(
                **make_inputs("is there a cat ?"), **STATIC, max_new_tokens=2, compile_config=CONFIG
            )


def test_a_kernel_whose_masks_are_numbers(make_model: Any, make_inputs: Any) -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    with cdkit.attach(model, cdkit.load("vcd")):
        with pytest.warns(CdkitWarning, match="the model's attention is eager; load it with"):
            model.generate(
                **make_inputs("is there a cat ?"), **STATIC, max_new_tokens=2, compile_config=CONFIG
            )


@pytest.mark.parametrize("off", [{}, {"compile_config": CONFIG, "disable_compile": True}])
def test_nothing_is_compiled_unless_asked(
    off: dict[str, Any], model: Any, make_inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", called)
    inputs = make_inputs("is there a cat ?")
    with cdkit.attach(model, cdkit.load("cmac")):
        model.generate(**inputs, **STATIC, **off, max_new_tokens=4)
        with pytest.raises(AssertionError, match=r"torch\.compile was called"):
            model.generate(**inputs, **STATIC, max_new_tokens=4, compile_config=CONFIG)

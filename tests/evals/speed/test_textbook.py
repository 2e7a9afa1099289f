"""The loop over two model calls a token computes what cdkit does, where it is a method's at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity.exact import exact

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.speed.agreement import check_agreement, reference
from cdkit.evals.speed.bench_runners import GenerateRunner
from cdkit.evals.speed.bench_settings import CDKIT, TEXTBOOK, TWO_PASS, BenchSettings
from cdkit.evals.speed.prompts import Prompts, make_prompts
from cdkit.evals.speed.shapes import build
from cdkit.evals.speed.textbook import TextbookRunner, has_textbook
from cdkit.evals.speed.variants import VariantName, check_has_variant, runner, runners

STEPS = 12
CPU = torch.device("cpu")


def prompts_of(model: Any) -> Prompts:
    return make_prompts(model, batch=2, text_tokens=12, new_tokens=STEPS, seed=1)


@pytest.mark.parametrize(("shape", "image_tokens"), [("micro", None), ("deep", 16)])
def test_the_benchs_models_answer_as_under_cdkit(shape: str, image_tokens: int | None) -> None:
    settings = BenchSettings(shape=shape, image_tokens=image_tokens, dtype="float64")
    model, processor = build(settings, torch.float64, CPU)
    assert model.dtype == torch.float64
    prompts, vcd = prompts_of(model), cdkit.load("vcd")
    made = runners(model, processor, {"vcd": vcd}, prompts, (TEXTBOOK, CDKIT))
    answers, seen = {}, list[int]()
    for name, own in made.items():
        with own.ready():
            answers[name] = own.answer(STEPS, lambda: seen.append(1))
    assert isinstance(made[VariantName(TEXTBOOK, "vcd")], TextbookRunner)
    assert len(seen) == 3 * STEPS, "each tells of each token"
    plain, textbook, under_cdkit = answers.values()
    assert torch.equal(textbook, under_cdkit)
    assert not torch.equal(plain, textbook), "VCD changes nothing: nothing was compared"


@pytest.mark.parametrize("parameters", [{}, {"alpha": 2.0, "step": 900}, {"beta": 0.0}])
def test_float64_logits_are_the_plain_algorithms(
    parameters: dict[str, float], make_model: Callable[..., Any]
) -> None:
    with exact(make_model(seed=3)) as model:
        prompts, vcd = prompts_of(model), cdkit.load("vcd", **parameters)
        told = reference(model, vcd, prompts, processor=None, layers=3, steps=STEPS)
        own = TextbookRunner(model, prompts, vcd)
        logits, tokens = own.logits(told.tokens), own.answer(STEPS, lambda: None)
    assert torch.equal(tokens, told.tokens) and logits.dtype == torch.float64
    torch.testing.assert_close(logits, told.combined, rtol=1e-9, atol=1e-9)
    left = logits.isfinite()
    assert (logits - told.original)[left].abs().max() > 1e-3, "the noise changes nothing"


def test_a_loop_with_other_noise_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, vcd = prompts_of(model), cdkit.load("vcd")
    told = reference(model, vcd, prompts, processor=None, layers=3, steps=STEPS)
    made = {VariantName(TEXTBOOK, "vcd"): runner(model, None, vcd, prompts, TEXTBOOK)}
    assert check_agreement(told, made)
    monkeypatch.setattr("cdkit.evals.speed.textbook.SEED", 1)
    with pytest.raises(CdkitError, match="vcd, textbook: at step 0"):
        check_agreement(told, made)


def test_a_token_is_two_calls_of_the_model(model: Any) -> None:
    calls = list[int]()
    counted = model.register_forward_hook(lambda *given: calls.append(1))
    own = TextbookRunner(model, prompts_of(model), cdkit.load("vcd"))
    own.answer(1, lambda: None)
    assert len(calls) == 2
    own.logits(own.answer(4, lambda: None))
    counted.remove()
    assert len(calls) == 2 + 8 + 8


def test_only_noise_on_the_image_alone_has_the_loop(model: Any) -> None:
    names = ("vcd", "cmac", "icd", "cmac_vcd", "ritual", "pai", "vdd", "identical", "opera")
    assert [name for name in names if has_textbook(cdkit.load(name))] == ["vcd"]
    methods = {name: cdkit.load(name) for name in ("cmac", "vcd")}
    made = runners(model, None, methods, prompts_of(model), (TWO_PASS, TEXTBOOK))
    assert [str(name) for name in made] == [
        *("plain", "cmac, two-pass", "vcd, two-pass", "vcd, textbook"),
    ]
    assert isinstance(made[VariantName(TWO_PASS, "vcd")], GenerateRunner)
    with pytest.raises(CdkitError, match="no variant of cmac is called 'textbook'"):
        runner(model, None, methods["cmac"], prompts_of(model), TEXTBOOK)


def test_a_method_without_a_row_is_refused() -> None:
    check_has_variant(cdkit.load("vcd"), (TEXTBOOK,))
    check_has_variant(cdkit.load("cmac"), (TEXTBOOK, CDKIT))
    check_has_variant(cdkit.load("cmac"), ())
    with pytest.raises(CdkitError, match="cmac is none: leave out --method cmac, or add a --var"):
        check_has_variant(cdkit.load("cmac"), (TEXTBOOK,))

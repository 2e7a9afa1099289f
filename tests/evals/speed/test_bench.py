"""The plain algorithm is cdkit by another way, and the check of a bench sees what is not."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.exact import exact
from typer.testing import CliRunner, Result

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals import cli
from cdkit.evals.speed import variants
from cdkit.evals.speed.agreement import Reference, check_agreement, reference
from cdkit.evals.speed.bench_runners import BenchRunner, GenerateRunner
from cdkit.evals.speed.bench_settings import EACH, VARIANTS, BenchSettings, optimizations
from cdkit.evals.speed.prompts import Prompts, make_prompts
from cdkit.evals.speed.variants import VariantName, check_benchable, runner
from cdkit.execution.optimizations import ALL, WHAT
from cdkit.methods.method import Method

STEPS = 4


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)], env={"COLUMNS": "170"})


def refused(*arguments: str | Path, status: int = 1) -> str:
    result = bench(*arguments)
    assert result.exit_code == status and "Traceback" not in result.output, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def prompts(model: Any) -> Prompts:
    return make_prompts(model, batch=3, text_tokens=12, new_tokens=STEPS, seed=1)


def method_of(model: Any, name: str, processor: Any, **parameters: Any) -> Method:
    return cdkit.attach(model, cdkit.load(name, **parameters), processor=processor).method


# ---- the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cmac", "vcd", "icd", "cmac_vcd", "pai", "vdd", "attention_mask", "ritual"]
)
def test_the_loop_gives_cdkits_tokens_and_float64_logits(
    name: str, make_model: Callable[..., Any], processor: Any, prompts: Prompts
) -> None:
    with exact(make_model(seed=3)) as model:
        method = method_of(model, name, processor)
        plain = reference(model, method, prompts, processor=processor, layers=3, steps=STEPS)
        tokens, original, expected = plain.tokens, plain.original, plain.combined
        with cdkit.attach(
            model,
            method,
            processor=processor,
            sample_ids=prompts.sample_ids,
            trace={"logits"},
        ) as run:
            made = model.generate(**prompts.inputs(), max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(made[:, prompts.ids.shape[1] :], tokens)
    combined = [step.combined for step in run.trace.steps]
    found = torch.stack([logits for logits in combined if logits is not None])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    several = expected.isfinite().sum(dim=-1) > 1
    assert several.any(), "all logits are ruled out: nothing was compared"
    left = expected.isfinite() & several[..., None]
    assert (expected - original)[left].abs().max() > 1e-3, "the branch changes nothing"


def test_the_loop_without_a_method_is_generate(model: Any, prompts: Prompts) -> None:
    plain = cdkit.load("plain")
    tokens = reference(model, plain, prompts, processor=None, layers=3, steps=STEPS).tokens
    assert torch.equal(GenerateRunner(model, prompts).answer(STEPS, lambda: None), tokens)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("opera", "over_trust"),
        ("dola", "premature_layers"),
        ("m3id", "growth"),
        ("plain", "it has no distorted branch, no calibrator and no intervention"),
        ("lcd", "entropy_contrast weighs a branch by what its logits are"),
    ],
)
def test_what_the_loop_cannot_express_is_refused(name: str, part: str) -> None:
    with pytest.raises(CdkitError, match=f"{name} cannot be benched: .*{part}.*such as cmac, vcd"):
        check_benchable(cdkit.load(name))


# ---- the check -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(model: Any, processor: Any, prompts: Prompts) -> Reference:
    method = method_of(model, "vcd", processor)
    return reference(model, method, prompts, processor=processor, layers=3)


NAME = VariantName("cdkit", "vcd")


def mutant(
    model: Any, processor: Any, prompts: Prompts, **parameters: Any
) -> dict[VariantName, BenchRunner]:
    method = method_of(model, "vcd", processor, **parameters)
    return {NAME: runner(model, processor, method, prompts, "cdkit")}


@pytest.mark.parametrize("variant", ["two-pass", "textbook", "cdkit", *EACH])
def test_every_variant_passes(
    variant: str, model: Any, processor: Any, prompts: Prompts, expected: Reference
) -> None:
    made = runner(model, processor, expected.method, prompts, variant)
    (agreed,) = check_agreement(expected, {VariantName(variant, "vcd"): made}).values()
    assert agreed.difference <= agreed.allowed < 1e-3


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"alpha": 1.01}, r"cdkit: at step \d a logit differs by .* from the two-pass loop's"),
        ({"beta": 0.01}, r"cdkit: at step 0, row \d, token \d+ is left and the two-pass"),
        ({"beta": 0.5}, r"cdkit: at step \d, row \d, token \d+ is ruled out and the two-pass"),
        (
            {"step": 499},
            r"vcd, cdkit: at step \d a logit differs by .* of which .* in torch.float64",
        ),
    ],
)
def test_a_variant_that_computes_something_else_is_told(
    parameters: dict[str, Any],
    says: str,
    model: Any,
    processor: Any,
    prompts: Prompts,
    expected: Reference,
) -> None:
    with pytest.raises(CdkitError, match=says + ".*nothing was measured"):
        check_agreement(expected, mutant(model, processor, prompts, **parameters))


def made_up(original: list[float], combined: list[float], **fields: Any) -> Reference:
    """One step of one row."""
    of = {"tokens": torch.zeros(1, 1, dtype=torch.long), "dtype": torch.float32, "layers": 4}
    rows = {"original": torch.tensor([[original]]), "combined": torch.tensor([[combined]])}
    return Reference(**rows, method=cdkit.load("vcd"), **(of | fields))  # type: ignore[arg-type]


OUT = -math.inf


def test_the_only_candidates_logit_decides_nothing() -> None:
    told = made_up([9.0, 1.0, 0.0], [9.0, OUT, OUT])
    assert told.one_candidate == 1
    assert told.compare("x", torch.tensor([[[5.0, OUT, OUT]]])).difference == 0
    two = made_up([9.0, 8.5, 0.0], [9.0, 8.0, OUT])
    assert two.one_candidate == 0
    with pytest.raises(CdkitError, match="x: at step 0 a logit differs by 4"):
        two.compare("x", torch.tensor([[[5.0, 8.0, OUT]]]))


def test_a_token_at_the_edge_may_be_left_or_not() -> None:
    edge = 9.0 + math.log(0.1)
    told = made_up([9.0, edge + 1e-6, 8.0], [9.0, 6.0, 8.0])
    told.compare("x", torch.tensor([[[9.0, OUT, 8.0]]]))
    inside = made_up([9.0, edge + 0.1, 8.0], [9.0, 6.0, 8.0])
    with pytest.raises(CdkitError, match="row 0, token 1 is ruled out"):
        inside.compare("x", torch.tensor([[[9.0, OUT, 8.0]]]))


def test_logits_that_are_no_numbers_are_told() -> None:
    with pytest.raises(CdkitError, match="x: logits are not numbers"):
        made_up([9.0, 8.0], [9.0, 8.0]).compare("x", torch.tensor([[[9.0, math.nan]]]))


def test_the_tolerance_grows_with_dtype_depth_alpha_and_size() -> None:
    base = made_up([8.0, 7.0], [8.0, 7.0])
    assert base.tolerance == pytest.approx(16 * 2**-23 * 2 * 8 * 3)
    assert replace(base, layers=16).tolerance == pytest.approx(2 * base.tolerance)
    assert replace(base, dtype=torch.float64).tolerance == base.tolerance
    assert replace(base, dtype=torch.bfloat16).tolerance > 1000 * base.tolerance
    strong = replace(base, method=cdkit.load("vcd", alpha=2.0))
    assert strong.tolerance == pytest.approx(base.tolerance * 5 / 3)


# ---- the command -----------------------------------------------------------------------------

QUICK = ("--rounds", "1", "--new-tokens", "2", "--threads", "1", "--text-tokens", "6")


METHODS = ("--method", "cmac", "--method", "vcd")


def test_variants_by_name() -> None:
    assert set(VARIANTS) == {
        *("plain", "two-pass", "textbook", "cdkit", "cdkit:none"),
        *(f"cdkit:only-{name}" for name in WHAT),
        *(f"cdkit:without-{name}" for name in WHAT),
    }
    assert optimizations("cdkit") is True and optimizations("cdkit:none") == frozenset()
    assert optimizations("cdkit:only-shared_prefix") == frozenset({"shared_prefix"})
    assert optimizations("cdkit:without-shared_prefix") == ALL - {"shared_prefix"}
    assert optimizations("cdkit:without-shared_cache") == ALL - {"shared_cache"}
    assert optimizations("two-pass") is False
    assert optimizations("plain") is optimizations("textbook") is None
    assert BenchSettings(variants=("cdkit", "plain", "cdkit")).measured == ("cdkit",)


def test_a_bench_of_all_default_variants(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = bench(*QUICK, "--batch", "1", "--batch", "2", *METHODS, "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("two-pass   vcd") == 2
    assert "batch 2, 6 text + 64 image tokens, 2 new" in result.stdout
    assert {f.name for f in folder.iterdir()} == {
        *("bench.json", "bench.md", "bench.svg"),
    }
    told = json.loads((folder / "bench.json").read_text())
    assert told["settings"]["shape"] == "micro" and told["settings"]["batches"] == [1, 2]
    assert told["machine"]["dtype"] == "float32" and told["machine"]["threads"] == 1
    assert set(told["machine"]["versions"]) == {"python", "cdkit", "torch", "transformers"}
    first, second = told["sections"]
    assert (first["batch"], second["batch"]) == (1, 2)
    names = [(row["variant"], row["method"]) for row in first["rows"]]
    of = [("two-pass", "cmac"), ("cdkit", "cmac")]
    of += [(v, "vcd") for v in ("two-pass", "textbook", "cdkit")]
    assert names == [("plain", None), *of]
    assert "for noise on the image alone: not for cmac." in " ".join(result.stdout.split())
    for row in [*first["rows"], *second["rows"]]:
        assert set(row["raw_seconds"]) == {"first_token", "per_token", "whole_answer"}
        assert all(len(taken) == 1 and taken[0] > 0 for taken in row["raw_seconds"].values())
        assert row["largest_difference"] <= row["allowed_difference"]
        assert row["operators_per_token"] > 100 and row["kernels_per_token"] is None
        assert row["peak_bytes"] == first["weight_bytes"] + row["bytes_over_weights"]
    plain = first["rows"][0]
    assert plain["ratio"]["whole_answer"] == {"value": 1, "low": 1, "high": 1}
    assert plain["peak_ratio"] == 1 and plain["bytes_over_weights"] > 0
    assert set(first["one_candidate"]) == {"cmac", "vcd"}
    assert "| two-pass | vcd |" in (folder / "bench.md").read_text()


@pytest.mark.slow  # as a bench of the default variants, over fourteen
def test_each_optimisation_by_itself_as_json() -> None:
    result = bench(*QUICK, "--method", "icd", "--variant", "cdkit", "--each", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["sections"][0]["rows"]
    assert [row["variant"] for row in rows] == ["plain", "cdkit", *EACH]


def test_the_command_measures_nothing_where_a_variant_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stock = variants.runner

    def wrong(
        model: Any, processor: Any, method: Method, prompts: Prompts, variant: str
    ) -> BenchRunner:
        if variant == "cdkit":
            method = replace(method, combiner=cdkit.load("vcd", alpha=1.01).combiner)
        return stock(model, processor, method, prompts, variant)

    monkeypatch.setattr(variants, "runner", wrong)
    line = refused(*QUICK, "--method", "vcd", "--batch", "4", "--out", tmp_path / "out")
    assert "vcd, cdkit: at step 0 a logit differs by" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "8b"], "no --shape is called '8b'. There is: 0.5b, 7b, deep, micro"),
        (["--variant", "fast"], "'fast'"),
        (["--variant", "cdkit:only-magic"], "'cdkit:only-magic'"),
        (["--dtype", "int8"], "no --dtype is called 'int8'"),
        (["--batch", "0"], "--batch is 0: give 1 or more"),
        (["--batch", "2", "--batch", "2"], "--batch is given twice with the same value: [2, 2]"),
        (["--text-tokens", "1"], "--text-tokens is 1: give 2 or more"),
        (["--new-tokens", "1"], "--new-tokens is 1: give 2 or more"),
        (["--rounds", "0"], "--rounds is 0: give 1 or more"),
        (["--threads", "0"], "--threads is 0: give 1 or more"),
        (["--seed", "-1"], "--seed is -1: give 0 or more"),
        (["--seed", str(2**63)], "--seed must be at most 9223372036854775807 (63 bits)"),
        (["--image-tokens", "50"], "--image-tokens is 50: an image is a square of tokens"),
        (["--method", "plain"], "--method plain always runs"),
        (["--method", "vcd", "--method", "vcd"], "--method is given twice"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], says: str) -> None:
    assert says in refused(*arguments, status=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "tpu"], "no device is called 'tpu': give auto, cpu, cuda (cuda:1"),
        (["--device", "cuda:77"], "device 'cuda:77' is not there: torch sees"),
        (["--image-tokens", "16"], "--image-tokens is 16, but the trained model micro has 64"),
        (["--method", "vdc"], "vdc"),
        (["--variant", "textbook"], "such as vcd; cmac is none: leave out --method cmac"),
        (["--method", "opera"], "opera cannot be benched: over_trust has no place"),
        (["--new-tokens", "2000"], "are 2114, but the model has positions for 2048"),
        (["--shape", "7b", "--dtype", "float64", "--device", "cpu"], "needs 56.5 GB"),
        (["--out", __file__], "is a file: name a folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2**22)
    assert says in refused(*arguments)


def test_help_has_examples() -> None:
    result = bench("--help")
    assert result.exit_code == 0 and "• cdkit bench --shape 7b" in result.stdout

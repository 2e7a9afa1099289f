"""Methods as values: presets, overrides, files, plain data and back."""

import dataclasses
import json
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest

import cdkit
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import REGISTRIES
from cdkit.methods.plain_data import parse_method

PRESETS = list(cdkit.presets())
PROMISED = (
    "plain vcd icd cmac cmac_imd cmac_cmpc attention_mask value_noise imccd plausibility identical "
    "sharpening random_mask no_image pai opera sid m3id vdd avisc dola deco vaf ritual cmac_vcd "
    "imccd_chair imccd_mme imccd_instructblip imccd_qwen_vl flb resdec lcd mod middle_layers bapa "
    "causalmm_language"
)


def test_the_presets_that_were_promised() -> None:
    assert set(PROMISED.split()) <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_method_is_a_value(name: str) -> None:
    method = cdkit.load(name)
    assert method == cdkit.load(name) and hash(method) == hash(cdkit.load(name))
    assert pickle.loads(pickle.dumps(method)) == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "x"  # type: ignore[misc]
    for _, part in method.parts():
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)


@pytest.mark.parametrize("name", PRESETS)
def test_plain_data_and_back(name: str) -> None:
    method = cdkit.load(name)
    data = json.loads(json.dumps(method.to_dict()))
    assert parse_method(data) == method
    for _, part in method.parts():  # every parameter is spelt out
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        assert all(key in json.dumps(data) for key in values)


def test_presets_are_different_and_say_what_they_are() -> None:
    found: dict[cdkit.Method, str] = {}
    for name, summary in cdkit.presets().items():
        method = cdkit.load(name)
        assert method.summary == summary and 10 < len(summary) < 100
        bare = dataclasses.replace(method, name="", summary="")
        assert found.setdefault(bare, name) == name


def test_cmacs_defaults() -> None:
    """As the paper has them; and the public code's reading beside it."""
    paper, code = cdkit.load("cmac").to_dict(), cdkit.load("imccd").to_dict()
    assert paper["combiner"]["alpha"] == code["combiner"]["alpha"] == 3.0
    assert (paper["constraint"]["beta"], code["constraint"]["beta"]) == (0.1, 0.2)
    assert (paper["calibrator"]["gamma"], code["calibrator"]["gamma"]) == (2.0, 3.0)
    assert (paper["calibrator"]["first_gap"], code["calibrator"]["first_gap"]) == ("scaled", "unit")
    (mean,), (scalar,) = (d["branches"][0]["distortions"] for d in (paper, code))
    assert (mean["value_mean"], scalar["value_mean"]) == ("dim", "scalar")
    assert mean["selector"] == scalar["selector"] == {"kind": "above_mean", "scope": "call"}


def test_overrides_reach_their_part() -> None:
    method = cdkit.load("cmac", alpha=1, beta=0.2, gamma=3.0, scope="row", value_mean="scalar")
    data = method.to_dict()
    assert data["combiner"]["alpha"] == 1.0 and isinstance(data["combiner"]["alpha"], float)
    assert data["constraint"]["beta"] == 0.2 and data["calibrator"]["gamma"] == 3.0
    assert data["branches"][0]["distortions"] == [
        {
            "kind": "value_mean_mask",
            "value_mean": "scalar",
            "selector": {"kind": "above_mean", "scope": "row"},
        }
    ]
    assert cdkit.load("cmac").to_dict()["combiner"]["alpha"] == 3.0  # the preset stays


TWO = """
summary = "two branches with a step each"
constraint = "none"
[combiner]
kind = "contrast"
alphas = [["noise", 0.5], ["values", 1.5]]
[[branches]]
name = "noise"
distortions = [{ kind = "diffusion_noise", step = 600 }]
[[branches]]
name = "values"
distortions = [{ kind = "value_noise" }, { kind = "diffusion_noise", step = 1 }]
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return path


def test_a_file(two: Path) -> None:
    method = cdkit.load(two)
    assert method == cdkit.load(str(two)) and method.name == "two"
    assert [branch.name for branch in method.branches] == ["noise", "values"]
    assert method == parse_method(tomllib.loads(TWO), source="two")


def test_dotted_names(two: Path) -> None:
    with pytest.raises(
        cdkit.CdkitError, match="two has 'step' more than once; say which: "
    ) as error:
        cdkit.load(two, step=3)
    for place in ("noise.diffusion_noise.step", "values.value_noise.step"):
        assert place in str(error.value)
    method = cdkit.load(two, **{"noise.diffusion_noise.step": 3, "value_noise.step": 4})
    steps = [d["step"] for b in method.to_dict()["branches"] for d in b["distortions"]]
    assert steps == [3, 4, 1]
    short = cdkit.load(two, **{"noise.step": 3})  # one part of that branch has it
    assert short == cdkit.load(two, **{"noise.diffusion_noise.step": 3})
    with pytest.raises(cdkit.CdkitError, match=r"two has 'values\.step' more than once; say which"):
        cdkit.load(two, **{"values.step": 3})
    with pytest.raises(cdkit.CdkitError, match=r"no parameter of two is called 'noise\.stop'"):
        cdkit.load(two, **{"noise.stop": 3})


FILES: list[tuple[str, str]] = [
    ("x = [", "is not valid TOML"),
    ('summary = "a"', r"has no \[combiner\]; give it one, such as kind = 'contrast'"),
    ("[combiner]\nalpha = 1", "combiner must be a table with a kind"),
    ('combiner = "contrast"', "combiner must be a table with a kind, got 'contrast'"),
    (
        '[combiner]\nkind = "contrasts"',
        "no logit combiner is called 'contrasts'. Did you mean 'con",
    ),
    ('[combiner]\nkind = "contrast"\nalfa = 1', "is called 'alfa'. Did you mean 'alpha'"),
    ('[combiner]\nkind = "contrast"\nalpha = -1', "contrast: alpha must be a finite number >= 0"),
    (
        '[combiner]\nkind = "contrast"\nalpha = "1"',
        "contrast: alpha must be of type float, got '1'",
    ),
    ('[combiner]\nkind = "contrast"\n[combinr]\n', "is called 'combinr'. Did you mean 'combiner'"),
    ('[combiner]\nkind = "contrast"\n[[branches]]\n', "branch 'distorted' has no distortion"),
    ('branches = 3\n[combiner]\nkind = "contrast"', "branches must be a list of tables, got 3"),
    (
        '[combiner]\nkind = "contrast"\n[[branches]]\ndistortions = [{ kind = "blur" }]',
        "branch 1: no distortion strategy is called 'blur'",
    ),
    (
        '[combiner]\nkind = "contrast"\n[[branches]]\nname = "original"\n'
        'distortions = [{ kind = "identical" }]',
        "a branch needs a name without dots other than 'original', got 'original'",
    ),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[message for _, message in FILES])
def test_broken_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(cdkit.CdkitError, match=message):
        cdkit.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(cdkit.CdkitError, match="cannot read the method file"):
        cdkit.load(tmp_path / "nothing.toml")
    with pytest.raises(cdkit.CdkitError, match="cannot read the method file"):
        cdkit.load(tmp_path)


def test_branches_of_one_name() -> None:
    (branch,) = cdkit.load("vcd").branches
    with pytest.raises(
        cdkit.CdkitError, match="branch names must differ, got distorted, distorted"
    ):
        Method("twice", cdkit.load("vcd").combiner, branches=(branch, branch))
    with pytest.raises(cdkit.CdkitError, match="without dots"):
        Branch("a.b", branch.distortions)


@pytest.mark.parametrize("name", PRESETS)
def test_switched_off_no_branch_runs(name: str) -> None:
    method = cdkit.load(name)
    told, switch = method.to_dict()["combiner"], method.combiner.switch
    if switch and not method.readout:
        off: dict[str, Any] = {f"combiner.{switch}": 0.0}
        if told.get("alphas"):
            off["combiner.alphas"] = []
        still = cdkit.load(name, **off)
        assert still.live_branches == ()
        quiet = cdkit.load(name, **off, beta=0.0)
        acts: Any = method.calibrator or method.interventions or method.loop
        acts = acts or method.live_state_interventions
        assert quiet.is_identity == (acts is None or acts == ())


def test_bibtex_stands_once_for_each_paper() -> None:
    parts: list[Any] = [part for registry in REGISTRIES.values() for part in registry.values()]
    entries = {part.bibtex for part in parts if part.bibtex}
    keys = {entry.partition(",")[0] for entry in entries}
    assert len(keys) == len(entries) >= 3  # one text for each paper
    for entry in entries:
        assert entry.startswith("@") and entry.count("{") == entry.count("}")

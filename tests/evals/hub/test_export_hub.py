"""`cdkit export-hub`: what Hugging Face's own generate makes of the folder, and what is refused."""

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor
from transformers import dynamic_module_utils
from transformers.utils.import_utils import split_package_version
from typer.testing import CliRunner, Result

import cdkit
from cdkit.evals import cli
from cdkit.evals.hub import repository
from cdkit.evals.hub.repository import call_parameters, taken_names, write_repository

hf: Any = transformers  # much of it is not typed
modules: Any = dynamic_module_utils
ROOT = Path(__file__).resolve().parents[3]
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3, "do_sample": False},
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["export-hub", *map(str, arguments)])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hugging Face copies the code that it runs into a folder of the user's."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_inputs("is there a cat ?", "w3 w4 <image> in the image ?")


@pytest.fixture(scope="module", params=["vcd", "cmac"])
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A method's name, and its repository."""
    folder = tmp_path_factory.mktemp("hub") / request.param
    done = run(request.param, folder)
    assert done.exit_code == 0, done.output
    assert str(folder) in done.stdout.replace("\n", "")
    return request.param, str(folder)


def tokens(model: Any, inputs: dict[str, Tensor], **asked: Any) -> list[list[int]]:
    torch.manual_seed(3)
    out: Tensor = model.generate(**inputs, max_new_tokens=6, **asked)
    return out.tolist()


@pytest.mark.parametrize("mode", DECODING)
def test_the_models_own_generate_runs_the_method(
    exported: tuple[str, str], mode: str, model: Any, inputs: dict[str, Tensor]
) -> None:
    name, folder = exported
    asked = DECODING[mode]
    before = dict(vars(model))
    found = tokens(model, inputs, custom_generate=folder, trust_remote_code=True, **asked)
    assert vars(model) == before
    with cdkit.attach(model, cdkit.load(name)):
        assert found == tokens(model, inputs, **asked)
    assert found != tokens(model, inputs, **asked)  # the method shows in these tokens


def test_parameters_are_arguments_of_the_call(
    exported: tuple[str, str], model: Any, inputs: dict[str, Tensor], processor: Any
) -> None:
    name, folder = exported
    changed = {"alpha": 4.0, "constraint.beta": 0.5}
    found = tokens(
        model,
        inputs,
        custom_generate=folder,
        trust_remote_code=True,
        processor=processor,
        seed=7,
        revision=None,
        **changed,
    )
    with cdkit.attach(model, cdkit.load(name, **changed), processor=processor, seed=7):
        assert found == tokens(model, inputs)
    with cdkit.attach(model, cdkit.load(name), processor=processor, seed=7):
        assert found != tokens(model, inputs)
    with pytest.raises(ValueError, match="alhpa"):  # generate's own error for an unknown argument
        tokens(model, inputs, custom_generate=folder, trust_remote_code=True, alhpa=4.0)
    with pytest.raises(cdkit.CdkitError, match="alpha must be a finite number"):
        tokens(model, inputs, custom_generate=folder, trust_remote_code=True, alpha=-1.0)


def test_every_preset_is_data_that_reads_back() -> None:
    for name in cdkit.presets():
        method = cdkit.load(name)
        module: dict[str, Any] = {}
        exec(compile(repository.code(method), name, "exec"), module)
        assert cdkit.load(module["METHOD"]) == method
        own = {each.name for each in call_parameters(method)}
        assert {n for n in own if "." not in n} <= {*module["PARAMETERS"]}
        assert taken_names().isdisjoint(module["PARAMETERS"])


def test_the_card_says_how_to_call_it_and_what_to_cite() -> None:
    words = {"deco": "combiner.top_k", "opera": "num_beams=5", "vti": "cdkit vectors vti"}
    for name in ("cmac", "vhr", "plain", *words):
        method = cdkit.load(name)
        card = repository.repository(method)["README.md"]
        assert words.get(name, name) in card
        assert cdkit.load(method.to_dict(), **dict(_values(method))) == method  # by these names
        assert method.summary.split()[0] in card and "\n\n\n" not in card
        assert all(paper in card for paper in _bibtex(method))


def _values(method: cdkit.Method) -> Iterator[tuple[str, Any]]:
    listed = iter(call_parameters(method))
    for _, part in method.parts():
        for value in vars(part).values():
            yield next(listed).name, value


def _bibtex(method: cdkit.Method) -> set[str]:
    return {
        part.bibtex.strip().splitlines()[0].strip()
        for _, part in method.parts()
        if part.bibtex and not getattr(part, "is_identity", False) and part is not method.combiner
    }


def test_a_users_own_file_and_changed_parameters(
    tmp_path: Path, model: Any, inputs: dict[str, Tensor]
) -> None:
    source = tmp_path / "mine.toml"
    source.write_text(
        'summary = "Mine \\"\\"\\" |"\n[combiner]\nkind = "contrast"\nalpha = 1.0\n'
        '[[branches]]\ndistortions = [{ kind = "value_mean_mask" }]\n',
        encoding="utf-8",
    )
    done = run(source, tmp_path / "out", "--set", "alpha=3.0")
    assert done.exit_code == 0, done.output
    folder = str(tmp_path / "out")
    found = tokens(model, inputs, custom_generate=folder, trust_remote_code=True)
    with cdkit.attach(model, cdkit.load(source, alpha=3.0)):
        assert found == tokens(model, inputs)


def test_the_requirements_are_cdkits_own_and_hugging_face_reads_each(tmp_path: Path) -> None:
    write_repository(cdkit.load("cmac"), tmp_path / "out")
    path = tmp_path / "out" / "custom_generate" / "requirements.txt"
    lines = path.read_text(encoding="utf-8").split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        f"{line.split('>')[0]}{each}"
        for line in project["dependencies"]
        if line.startswith(("torch>", "transformers>"))
        for each in line[len(line.split(">")[0]) :].split(",")
    }
    version = project["version"]
    assert {*lines} == {*declared, f"cdkit>={version}", "cdkit<0.2"}
    check = modules.check_python_requirements
    check(str(path.parent), requirements_file=path.name)
    for line in lines:  # it reads the first comparison of a line, and nothing behind it
        assert "".join(split_package_version(line)) == line
    path.write_text("\n".join([*lines, "torch<2.0"]), encoding="utf-8")
    with pytest.raises(ImportError, match=r"torch<2\.0"):
        check(str(path.parent), requirements_file=path.name)


@dataclass(frozen=True)
class NobodysCombiner(cdkit.LogitCombiner):
    """In no package."""

    stateful: ClassVar[bool] = False

    def combine(self, original: Any, others: Any, *, step: int, state: Any) -> Any:
        return original, state

    def uses(self, name: str) -> bool:
        return False

    @property
    def is_identity(self) -> bool:
        return True


@pytest.mark.skipif(sys.platform == "win32", reason="no such names of folders there")
def test_the_line_that_is_printed_is_python(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" it\'s'
    done = run("cmac", folder)
    assert f"custom_generate={json.dumps(str(folder))}, trust_remote_code=True" in done.stdout


def test_what_is_refused(tmp_path: Path, model: Any, inputs: dict[str, Tensor]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine", encoding="utf-8")
    for arguments, status, word in (
        (("cmacc", tmp_path / "a"), 1, "Did you mean"),
        (("cmac", full), 1, "not an empty folder"),
        (("cmac", full / "mine.txt"), 1, "not an empty folder"),
        (("cmac", tmp_path / "a", "--set", "alpha"), 2, "NAME=VALUE"),
        (("cmac", tmp_path / "a", "--set", "alfa=1"), 1, "alfa"),
        (("vti", tmp_path / "a", "--set", "vectors=vti.safetensors"), 1, "leave vectors out"),
    ):
        done = run(*arguments)
        assert done.exit_code == status and word in " ".join(done.stderr.split()), done.output
        assert done.stdout == ""
    assert not (tmp_path / "a").exists() and [*full.iterdir()] == [full / "mine.txt"]
    with pytest.raises(cdkit.CdkitError, match="no installed package holds"):
        write_repository(cdkit.Method("mine", NobodysCombiner()), tmp_path / "a")
    hub = {"custom_generate": str(tmp_path / "vti"), "trust_remote_code": True}
    assert run("vti", tmp_path / "vti").exit_code == 0  # the call gives the file
    assert "cdkit vectors vti" in (tmp_path / "vti" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(cdkit.CdkitError, match="vti cannot run yet"):
        tokens(model, inputs, **hub)
    with pytest.raises(cdkit.CdkitError, match=r"cannot read .*nowhere\.safetensors"):
        tokens(model, inputs, vectors="nowhere.safetensors", **hub)


def test_a_model_without_an_adapter(tmp_path: Path) -> None:
    write_repository(cdkit.load("cmac"), tmp_path / "out")
    config = hf.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    hub = {"custom_generate": str(tmp_path / "out"), "trust_remote_code": True}
    blind = hf.LlamaForCausalLM(config).eval()
    with pytest.raises(cdkit.CdkitError, match="adapter"):
        blind.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=2, **hub)


def test_data_that_is_no_method_has_its_name_in_the_message() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"mine has no \[combiner\]"):
        cdkit.load({"name": "mine"})
    composed = {"name": "both", "compose": ["cmac", {"method": "vcd", "alpha": 0.5}]}
    assert cdkit.load(composed).name == "both"

"""What is wrong with a run's options or its file: one error, before any model is loaded."""

from pathlib import Path

import pytest
from evals.command_line import run

import cdkit
from cdkit.evals.microworld.world_files import write_benchmarks

GRID = """
[bench.pope]
[methods]
plain = {}
cmac = {}
"""
NUMBERS = """
[[published]]
of = "a"
source = "b"
parts = ["pope_micro_*"]
models = ["*"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "micro"
    write_benchmarks(folder, images=2, exam_images=1)
    return folder


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdkit, "load_model", lambda *args, **kwargs: pytest.fail("too late"))


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one error, after which nothing is left of the run."""
    result = run(*arguments, "--output", folder / "runs", "--name", "x")
    assert result.exit_code in (1, 2), result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and not (folder / "runs" / "x").exists()
    assert not [*(folder / "runs").glob(".x*")]
    return line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--method plain --bench pope --protocol vcd_pop", "Did you mean 'vcd_pope'?"),
        ("--method plain --bench pope --protocol none.toml", "cannot read the protocol"),
        ("--method plain --bench pope --protocol imccd_chair", "pope cannot follow caption_prompt"),
        ("--method plain --bench chair --protocol vcd_pope", "chair cannot follow question_suffix"),
        ("--method plain --bench pope --parser strickt", "Did you mean 'strict'?"),
        ("--method plain --bench chair --scorer simpel", "Did you mean 'simple'?"),
        ("--method plain --bench pope --caption-prompt Hi.", "pope cannot follow caption_prompt"),
        ("--method plain --bench chair --image-list none.txt", "none.txt cannot be read"),
        ("--method plain --bench pope --template x", "must hold {images} once and {question} once"),
        ("--method plain --bench pope --only pope_micro_rando", "mean 'pope_micro_random'?"),
        ("--method plain --bench pope,chair --only chairs", "Did you mean 'chair'?"),
        (
            "--method plain --bench pope --protocol vcd_pope --mode greedy,sample",
            "a protocol decodes in one mode; give one",
        ),
        ("--method plain,cmac --bench pope --set alpha=1", "--set belongs to one method"),
        ("--method cmac --bench pope --set alpah=1", "Did you mean 'alpha'?"),
        ("--method plain,plain --bench pope", "method holds 'plain' twice"),
        ("--method plain --bench pope,pope", "bench holds 'pope' twice"),
        ("--method plain,cmax --bench pope", "Did you mean 'cmac'?"),
        ("--method plain --bench pop", "Did you mean 'pope'?"),
        ("--method plain --bench amber", "there is no amber in"),
        ("--method plain --bench pope --model micro,micro", "model holds 'micro' twice"),
        ("--method plain --bench pope --model micro,no/such", "cannot load the model 'no/such'"),
        ("--method plain --bench pope --model micro,./no", "cannot load the model './no'"),
        (
            "--method plain --bench pope --model no/such --protocol vcd_pope",
            "cannot load the model 'no/such' (there is no such folder here",
        ),
    ],
)
def test_options(options: str, told: str, data: Path, tmp_path: Path) -> None:
    assert told in refused(tmp_path, "eval", "--data", data, *options.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("protocl = 'x'" + GRID, "no key is called 'protocl'. Did you mean 'protocol'?"),
        ("protocol = 'vcd_pop'" + GRID, "Did you mean 'vcd_pope'?"),
        ("protocol_changes = { scorr = 'x' }" + GRID, "Did you mean 'scorer'?"),
        ("protocol_changes = { temperature = 'hot' }" + GRID, "must be of type float, got 'hot'"),
        ("models = []" + GRID, "model is empty"),
        ("model = 'a'\nmodels = ['b']" + GRID, "model and models are one key"),
        (
            GRID.replace("[bench.pope]", "[bench.pope]\nonly = ['pope_coco_*']"),
            "only of [bench.pope] is pope_coco_*, which leaves nothing of the parts in",
        ),
        (
            GRID.replace("[bench.pope]", "[bench.pope]\nparsr = ['strict']"),
            "Did you mean 'parsers'?",
        ),
        (
            GRID + NUMBERS + "values.plain = { acuracy = 1.0 }",
            "values of [[published]] beside pope_micro_random: no metric is called 'acuracy'. Did "
            "you mean 'accuracy'?",
        ),
        (
            GRID + NUMBERS + "values.vcd = { accuracy = 1.0 }",
            "[[published]] of a: no method of the grid is called 'vcd'",
        ),
        (
            GRID + NUMBERS + "values.plain = { accuracy = '1' }",
            "of a is no number: '1'",
        ),
        (GRID + NUMBERS + "values.plain = { accuracy = nan }", "is no number: nan"),
        (GRID + NUMBERS + "values.plain = { accuracy = true }", "is no number: True"),
        (GRID + NUMBERS + "values.plain = {}", "values.plain of [[published]] of a is empty"),
        (GRID + NUMBERS + "value.plain = { accuracy = 1.0 }", "Did you mean 'values'?"),
        (GRID + NUMBERS, "[[published]] needs the key 'values'"),
    ],
)
def test_a_grid_s_file(text: str, told: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text, encoding="utf-8")
    assert told in refused(tmp_path, "ablate", file, "--data", data)


def test_a_key_of_a_protocol_s_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("temperatur = 1.0", encoding="utf-8")
    line = refused(
        tmp_path, "eval", "--data", data, "--method", "plain", "--bench", "pope", "--protocol", file
    )
    assert "Did you mean 'temperature'?" in line


def test_data_folders(data: Path, tmp_path: Path) -> None:
    assert "give --data DIR" in refused(tmp_path, "ablate", "cmac_pope")
    line = refused(tmp_path, "eval", "--method", "plain", "--bench", "pope")
    assert "give --data" in line
    line = refused(tmp_path, "ablate", "default", "--data", data)
    assert "names its files itself ([benchmarks]), so no --data" in line
    assert "is no folder" in refused(tmp_path, "ablate", "cmac_pope", "--data", tmp_path / "no")
    barred = ("ablate", "cmac_modules", "--data", data, "--only", "pope_micro_random")
    assert "and not pope_micro_random: name others" in refused(tmp_path, *barred)


def test_a_model_without_a_system_message(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processor's template says so, which is read before its weights."""
    from cdkit.interfaces.chat_prompt import no_system_message
    from cdkit.models.llava import Llava

    def prompt(self: Llava, *args: object, system: str = "", **kwargs: object) -> str:
        raise no_system_message("its template has no place for one")

    monkeypatch.setattr(Llava, "prompt", prompt)
    asked = ("eval", "--data", data, "--method", "plain", "--bench", "pope", "--system", "You.")
    assert "the model has no system message: its template" in refused(tmp_path, *asked)

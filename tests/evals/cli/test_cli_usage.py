"""Usage errors end every command in one way; an option of one value is given once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from evals.command_line import refused, run
from PIL import Image

from cdkit.evals import cli


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        here = (*words, name)
        yield from commands(command, here) if hasattr(command, "commands") else [(here, command)]


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def options(words: tuple[str, ...], *, multiple: bool) -> list[str]:
    return [
        option.opts[0]
        for option in COMMANDS[words].params
        if option.param_type_name == "option" and not option.is_flag and option.multiple is multiple
    ]


ONCE = [(words, name) for words in COMMANDS for name in options(words, multiple=False)]


def test_there_are_commands_and_options() -> None:
    assert len(COMMANDS) > 10 and (("eval",), "--method") in ONCE and len(ONCE) > 60


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_option_of_one_value_is_given_once(words: tuple[str, ...]) -> None:
    """Also where both values are the same, and in both spellings of an option."""
    for name in options(words, multiple=False):
        for twice in ((name, "1", name, "1"), (f"{name}=1", name, "2")):
            result = run(*words, *twice)
            assert result.exit_code == 2 and result.stdout == "", result.output
            assert f"'{name}'" in result.stderr and "it is given 2 times" in result.stderr
            assert "Traceback" not in result.output


def test_an_option_of_several_values_is_given_often(tmp_path: Path) -> None:
    assert options(("generate",), multiple=True) == ["--image", "--set"]
    asked = ("generate", "--prompt", "p", "--image", tmp_path / "a", "--image", tmp_path / "b")
    assert "no such image" in refused(*asked, "--set", "alpha=1.0", "--set", "beta=0.1")
    assert run("list", "calibrators", "--cite", "--cite").exit_code == 0  # a flag says the same


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval",),
        ("eval", "--method", "cmac"),
        ("eval", "--bench", "pope", "--data", "x"),
        ("eval", "--resume"),
        ("generate",),
        ("generate", "--prompt", "p"),
        ("explain", "--prompt", "p"),
        ("compare",),
        ("compare", "runs/a"),
        ("score", "pope", "--questions", "x"),
        ("score", "chair", "--captions", "x"),
        ("score", "chair", "--captions", "x", "--instances", "x"),
        ("score", "mme", "--answers", __file__),
        ("score", "amber"),
        ("data", "check"),
        ("data", "build-pope"),
        ("train-micro",),
        ("convert-qwen-vl", "x"),
    ],
    ids=" ".join,
)
def test_what_is_missing_ends_with_the_same_status(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert "Traceback" not in result.output and result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--metod", "x"),
        ("eval", "--limit", "x"),
        ("eval", "--limit", "0"),
        ("generate", "--max-new-tokens", "0"),
        ("bench", "--rounds", "0"),
        ("ablate", "--dtype", "int8"),
        ("list", "modles"),
        ("evaluate",),
    ],
    ids=" ".join,
)
def test_what_an_option_cannot_be_ends_with_it_too(arguments: tuple[str, ...]) -> None:
    if arguments[:2] == ("eval", "--limit"):
        arguments += ("--method", "cmac", "--bench", "pope", "--data", "x")
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output


@pytest.mark.parametrize("name", ["VCDX", "Cmacx", "PLAINX"])
def test_a_near_name_is_found_in_any_case(name: str, tmp_path: Path) -> None:
    near = f"Did you mean {name.lower()[:-1]!r}?"
    assert near in refused("eval", "--method", name, "--bench", "pope", "--data", "x")
    assert near in refused("generate", "--prompt", "p", "--image", "x", "--method", name)
    assert near in refused("bench", "--method", name) or name == "PLAINX"
    made = ("eval", "--method", "plain", "--bench", "pope", "--data", tmp_path)
    assert "Did you mean 'pope'?" in refused(*made[:4], "POPEX", *made[5:])
    assert "no method" not in refused("eval", "--method", name[:-1], *made[3:])  # in another case
    assert "Did you mean 'sample'?" in refused(*made, "--mode", "SAMPLE", status=2)
    assert "Did you mean 'float32'?" in refused(*made, "--dtype", "FLOAT32", status=2)


def asking(folder: Path) -> tuple[str | Path, ...]:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return ("generate", "--prompt", "p", "--image", folder / "a.png", "--method", "plain")


@pytest.mark.parametrize("model", ["no/such", "./no/such/folder", "/no/such", "no such", "a/b/c/d"])
def test_a_wrong_path_of_a_model_is_called_so(model: str, tmp_path: Path) -> None:
    asked = asking(tmp_path)
    told = refused(*asked, "--model", model)
    assert f"cannot load the model '{model}' (there is no such folder here" in told


def test_a_file_for_a_model_is_called_so(tmp_path: Path) -> None:
    asked = asking(tmp_path)
    told = refused(*asked, "--model", tmp_path / "a.png")
    assert "it is a file, and a model is a folder" in told


def test_help_has_no_types_of_python() -> None:
    """An option without a value shows none: `--sample <bool>` reads as if it took one."""
    text = run("explain", "--help").stdout
    assert "<bool>" not in text and "list[" not in text
    assert "--sample" in text and "FILE" in text

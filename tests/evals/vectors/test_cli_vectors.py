"""`cdkit vectors` as a user calls it, on the micro-world."""

from pathlib import Path

import pytest
from evals.command_line import refused, run

from cdkit.evals.microworld.caption_pairs import write_pairs
from cdkit.interfaces.vector_file import read_vectors


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro") / "pairs"
    write_pairs(folder, pairs=3)
    return folder


def test_from_pairs_to_an_answer(pairs: Path, tmp_path: Path) -> None:
    """The file runs under `generate`, as a file of this model and of this method alone."""
    out = tmp_path / "nullu.safetensors"
    made = run("vectors", "nullu", "--data", pairs, "--rank", "2", "--out", out)
    assert made.exit_code == 0, made.output
    assert made.stdout == f"wrote {out}, from 3 pairs\n"
    found = read_vectors(out)
    assert found.directions.shape[1] == 2 and found.manifest["model"]["name"] == "micro"
    assert "model.safetensors" in found.manifest["model"]["files"]
    picture = pairs / "images" / "000000000001.png"
    asked = ("--image", picture, "--prompt", "is there a cat ?", "--set", f"vectors={out}")
    told = run("generate", "--method", "nullu", *asked, "--set", "rank=2")
    assert told.exit_code == 0, told.output
    for method, why in (
        ("nullu", "holds 2 directions a layer, but nullu is set to use 4: set fewer"),
        ("vti", "holds the directions of nullu: compute those of vti"),
    ):
        told = run("generate", "--method", method, *asked)
        assert told.exit_code == 1 and told.stdout == ""
        assert told.stderr.count("error: ") == 1 and why in told.stderr
    again = refused("vectors", "nullu", "--data", pairs, "--out", out)
    assert again == f"error: --out {out} is there: name a new .safetensors file"


def test_what_is_refused_before_a_model_is_loaded(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    asked = ("--data", pairs, "--model", "nowhere/no-such-model")
    told = refused("vectors", "nulu", *asked, "--out", out)
    assert "no method with directions is called 'nulu'. Did you mean 'nullu'? There is: " in told
    told = refused("vectors", "vti", *asked, "--out", tmp_path / "x.bin")
    assert "does not end in .safetensors" in told
    told = refused("vectors", "vti", *asked, "--out", tmp_path / "no" / "x.safetensors")
    assert "is no folder that can be written to" in told
    told = refused("vectors", "vti", "--data", tmp_path, "--out", out)
    assert "holds no pairs.jsonl" in told
    assert not out.exists()


def test_a_method_without_its_file(pairs: Path) -> None:
    """One error; where several methods are compared it stands in place of the answer."""
    asked = ("--image", pairs / "images" / "000000000001.png", "--prompt", "is there a cat ?")
    told = refused("generate", "--method", "vti", *asked)
    assert told.startswith("error: vti cannot run yet: vti needs a file of directions: compute it ")
    assert "cdkit vectors vti --model MODEL --data PAIRS --out vti.safetensors" in told
    both = run("generate", "--compare", "vti,plain", *asked)
    assert both.exit_code == 3 and "needs a file of" in both.stdout
    told = refused("eval", "--method", "nullu", "--bench", "pope", "--data", pairs)
    assert "nullu cannot run yet" in told

"""`cdkit explain`: the page that it writes, and what it refuses."""

from pathlib import Path

import pytest
from evals.command_line import refused, run
from PIL import Image

PROMPT = "is there a cat ?"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def test_it_writes_the_page_and_says_what_happened(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run(
        "explain", "--image", picture, "--prompt", PROMPT, "--method", "cmac,vcd,opera",
        "--max-new-tokens", "3", "--layers", "1,3", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 3, result.output  # opera searches with beams
    assert result.stderr == "model: micro on cpu in float32\n"
    *answers, cmac, vcd, opera, last = result.stdout.splitlines()
    assert [line.split(":")[0] for line in answers] == ["plain", "cmac", "vcd"]
    assert cmac.startswith("cmac changed ") and vcd.startswith("vcd changed ")
    assert opera.startswith("opera did not run: it is not defined for greedy")
    assert "give --beams 5" in opera and last == f"The page: {out}"
    page = out.read_text(encoding="utf-8")
    assert "What cmac, vcd and opera did to one answer" in page
    assert "2 of 4 layers are drawn" in page and "[image: 64 tokens]" in page


def test_a_file_has_the_name_that_stands_in_it(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text('name = "mine"\ncompose = ["vcd", "cmac_cmpc"]\n')
    out = tmp_path / "page.html"
    result = run(
        "explain", "--image", picture, "--prompt", PROMPT, "--method", f"nullu,{file}",
        "--max-new-tokens", "1", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    plain, mine, lacks, changed, _ = result.stdout.splitlines()
    assert plain.startswith("plain: ") and mine.startswith("mine: ")
    assert changed.startswith("mine changed ") and "1 token:" in changed.replace(
        " none of 1 token", " 1 token"
    )
    assert lacks.startswith("nullu did not run: it needs a file of directions: compute it (cdkit")
    assert "What nullu and mine did to one answer" in out.read_text(encoding="utf-8")


def test_methods_in_several_options_and_a_file_with_a_comma(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "a, b.toml"
    file.write_text('name = "mine, too"\ncompose = ["vcd"]\n')
    result = run(
        "explain", "--image", picture, "--prompt", PROMPT, "--method", f"ICD,{file},nullu",
        "--method", "opera", "--max-new-tokens", "1", "--out", tmp_path / "page.html",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["plain", "icd", "mine, too"]
    assert any(line.startswith("nullu did not run") for line in lines)
    assert any(line.startswith("opera did not run") for line in lines)


def test_plain_alone_prints_its_answer(picture: Path, tmp_path: Path) -> None:
    given = ("--image", picture, "--prompt", PROMPT, "--method", "plain", "--max-new-tokens", "1")
    result = run("explain", *given, "--out", tmp_path / "page.html")
    assert result.stdout.splitlines() == ["plain: no", f"The page: {tmp_path / 'page.html'}"]


@pytest.mark.parametrize("mode", [("--sample", "--seed", "3"), ("--beams", "2")])
def test_the_answer_is_that_of_generate(
    picture: Path, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    asked: tuple[str | Path, ...] = (
        "--image",
        picture,
        "--prompt",
        PROMPT,
        "--method",
        "vcd",
        *mode,
    )
    answer = run("generate", *asked).stdout.splitlines()[3].strip(" │")
    result = run("explain", *asked, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    body = page[page.index("<legend>vcd</legend>") :]
    words = [part.split("<")[0].split(">")[1] for part in body.split("<label ")[1:]]
    words = [part for part in words if part != "</s>"][: len(answer.split())]
    assert answer.split() == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "0,x"), "--layers takes numbers with commas between them, got '0,x'"),
        (("--method", ","), "--method names no method"),
        (("--method", "vcd", "--method", " "), "--method names no method"),
        (("--method", "cmac,vcd", "--set", "alpha=1"), "--set belongs to one --method"),
        (("--temperature", "1"), "--temperature belongs to --sample"),
        (("--sample", "--beams", "2"), "--beams searches and --sample draws"),
        (("--out", "."), "--out is a file such as page.html, but . is a folder"),
        (("--out", "page"), "--out page is no name of a page: end it in .html"),
        (("--out", "page.pdf"), "--out page.pdf is no name of a page: end it in .html"),
    ],
)
def test_wrong_usage(picture: Path, arguments: tuple[str, ...], words: str) -> None:
    given: tuple[str | Path, ...] = ("explain", "--image", picture, "--prompt", PROMPT, *arguments)
    assert words in refused(*given, status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", PROMPT), "--image is missing: give --image and --prompt, or --run and"),
        (("--run", "x"), "--question is missing"),
        (("--mode", "greedy"), "--run is missing"),
        (("--mode", "greedy", "--prompt", PROMPT), "--mode chooses among the answers of a run"),
        (("--run", "x", "--question", "a/1", "--prompt", PROMPT), "--prompt is what the run says"),
        (("--run", "x", "--question", "a/1", "--beams", "2"), "--beams is what the run says"),
        (("--run", "x", "--question", "a/1", "--mode", "beams"), "Did you mean 'beam'?"),
    ],
)
def test_one_answer_is_meant(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("explain", *arguments, status=2)


def test_out_is_checked_before_the_work(picture: Path, tmp_path: Path) -> None:
    given = ("explain", "--image", picture, "--prompt", PROMPT, "--out")
    nowhere = refused(*given, tmp_path / "none" / "page.html", status=2)
    assert "none is no folder that can be written to" in nowhere
    before = picture.read_bytes()
    assert "photo.png is there and no page (.html)" in refused(*given, picture, status=2)
    assert picture.read_bytes() == before


def test_what_is_refused(picture: Path, tmp_path: Path) -> None:
    given = ("explain", "--image", picture, "--prompt", PROMPT, "--out", tmp_path / "p.html")
    strange = run(*given, "--layers", "4")  # known once the model is loaded, which is told
    assert strange.exit_code == 1 and "Traceback" not in strange.output
    assert "error: layer 4 is not there: the decoder's layers with" in strange.stderr
    assert "Did you mean" in refused(*given, "--method", "cmacc")
    assert "none.toml: No such file or directory" in refused(*given, "--method", "none.toml")
    assert "vcd is given twice: give each method once" in refused(*given, "--method", "vcd,VCD")
    address = refused("explain", "--image", "https://x.org/a.png", "--prompt", PROMPT)
    assert "is an address: download it first, and give the file" in address
    assert "no such image" in refused(
        "explain", "--image", tmp_path / "none.png", "--prompt", PROMPT
    )
    assert not (tmp_path / "p.html").exists()

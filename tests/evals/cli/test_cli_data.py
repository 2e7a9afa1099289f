"""`cdkit data`: what its commands write, print and return."""

import json
from pathlib import Path

import pytest
from evals.data_folder import IMAGES, write_folder
from typer.testing import CliRunner, Result

from cdkit.evals import cli
from cdkit.evals.data.layout import parts_in


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)], env={"COLUMNS": "150"})


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 1 and "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["check", "micro-world", "micro-pairs", "build-pope"])
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"• cdkit data {command}" in result.stdout


def test_check_prints_a_table_and_says_by_its_status_whether_all_is_whole(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    result = run("check", folder)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "│ pope_coco_popular" in line]
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["4", "2 yes, 2 no", "2 of 2"]
    assert "not here: amber" in result.stdout and "problem" not in result.stdout
    (folder / "coco/val2014" / IMAGES[0]).unlink()
    result = run("check", folder)
    assert result.exit_code == 1 and result.stderr == ""
    assert (
        f"problem: chair: 1 of 2 images in coco/val2014 are missing ({IMAGES[0]})" in result.stdout
    )


def test_check_as_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    result = run("check", folder, "--json", "--images")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["whole"] is True
    assert told["parts"][0]["labels"] == {"yes": 2, "no": 2}
    (folder / "mme/0001.png").write_text("no image")
    result = run("check", folder, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["whole"] is False
    assert told["parts"][-1]["images"]["wrong"] == {"unreadable": ["0001.png"]}


def test_names_from_files_are_no_markup(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    path = folder / "pope/coco/coco_pope_random.json"
    path.write_text(path.read_text().replace(IMAGES[0], "[red]x[/blue].jpg"))
    result = run("check", folder)
    assert result.exit_code == 1 and "missing ([red]x[/blue].jpg)" in result.stdout


def test_names_from_files_do_not_steer_the_terminal(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    path = folder / "pope/coco/coco_pope_random.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = ("\x1b[2J\r.jpg", "x" * 5000)  # one that wipes the screen, one that no disk takes
    for row, name in zip(rows, names, strict=False):
        row["image"] = name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("check", folder)
    told = "problem: pope_coco_random: 2 of 3 images in coco/val2014 are missing"
    assert f"{told} (\\x1b[2J\\r.jpg, {'x' * 77}...)" in result.stdout.splitlines()


def test_a_folder_without_a_benchmark(tmp_path: Path) -> None:
    assert "no benchmark is in" in refused("check", tmp_path)


def test_micro_world_writes_what_check_calls_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "micro"
    assert run("micro-world", out, "--images", "4", "--seed", "9").exit_code == 0
    result = run("check", out, "--images")
    assert result.exit_code == 0, result.output
    assert "note" not in result.stdout
    assert "is there and not an empty folder: name a new one" in refused("micro-world", out)


def instances(path: Path, images: int = 20) -> Path:
    boxes = [(i, c) for i in range(images) for c in range(9) if (i * 37 + 11) >> c & 1]
    content = {
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in range(images)],
        "categories": [{"id": c, "name": name} for c, name in enumerate("abcdefghi")],
        "annotations": [{"image_id": i, "category_id": c} for i, c in boxes],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_build_pope_writes_files_that_the_layout_reads(tmp_path: Path) -> None:
    source = instances(tmp_path / "i.json")
    asked = ("build-pope", "--instances", source, "--images", "5", "--seed", "2", "--out")
    result = run(*asked, tmp_path / "data" / "pope")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("wrote 3 files of 30 questions to ")
    parts = parts_in("pope", tmp_path / "data")
    assert list(parts) == ["pope_coco_random", "pope_coco_popular", "pope_coco_adversarial"]
    assert {len(part.benchmark.samples()) for part in parts.values()} == {30}
    made = json.loads((tmp_path / "data/pope/built_from.json").read_text())
    assert (made["images"], made["seed"], made["objects"]) == (5, 2, 3)
    assert run(*asked, tmp_path / "again").exit_code == 0
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "data/pope" / path.name).read_bytes()
    assert "is there and not an empty folder" in refused(*asked, tmp_path / "again")


def test_build_pope_writes_nothing_where_it_cannot(tmp_path: Path) -> None:
    source = instances(tmp_path / "i.json")
    out = tmp_path / "out"
    told = refused("build-pope", "--instances", source, "--out", out)
    assert "of 20 images show 3 or more of the 9 categories" in told and not out.exists()
    told = refused("build-pope", "--instances", tmp_path / "none.json", "--out", out)
    assert "none.json cannot be read" in told


def test_the_commands_of_the_page_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "DIR")
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    commands = [line.split()[2:] for line in page.splitlines() if line.startswith("cdkit data ")]
    assert {name for name, *_ in commands} == {"micro-world", "check", "build-pope"}
    for name, *arguments in commands:
        if name == "build-pope":
            instances(Path("DIR/coco/annotations/instances_val2014.json"), images=1500)
        result = run(name, *arguments)
        assert result.exit_code == 0, result.output

"""`cdkit score`: golden numbers of small files, what is printed, and how it fails."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from amber_files import QUESTIONS, write_amber
from typer.testing import CliRunner, Result

from cdkit.evals import cli
from cdkit.evals.benchmarks.benchmark_files import read_answers
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.score_files import score_chair

LABELS = ("yes", "no", "yes", "no", "yes", "no")
POPE_TEXTS = ("Yes, it is.", "No", "A snowboard", "Yes", "yes", "There is not.")
TRUTH = {"1": ["dog", "bus"], "2": ["person"], "3": [], "4": ["tie"]}
CAPTIONS = {"1": "A dog, a dog and a bench", "2": "A man", "3": "a stool on a stool"}
DIGEST = hashlib.sha256


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        cli.app, ["score", *map(str, arguments)], env={"COLUMNS": "150", "NLTK_DATA": ""}
    )


def scored(*arguments: str | Path) -> dict[str, object]:
    """The one JSON object on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def refused(*arguments: str | Path, status: int = 1) -> str:
    """The one line on stderr of a command that the user can mend; a usage error has status 2."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == "" and "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pope(tmp_path: Path) -> tuple[Path, Path]:
    asked = [
        {"question_id": i, "image": f"{i // 2}.jpg", "text": "q", "label": label}
        for i, label in enumerate(LABELS)
    ]
    said = [{"question_id": i, "text": text} for i, text in enumerate(POPE_TEXTS)]
    return lines(tmp_path / "pope.json", asked), lines(tmp_path / "said.jsonl", said)


@pytest.fixture
def chair(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    said = [{"image_id": int(i), "caption": text} for i, text in CAPTIONS.items()]
    return lines(tmp_path / "captions.jsonl", said), tmp_path / "truth.json"


@pytest.fixture
def mme(tmp_path: Path) -> Path:
    folder = tmp_path / "mme"
    folder.mkdir()
    rows = {
        "existence": [("a", "Yes", "Yes, it is"), ("a", "No", "No"), ("b", "Yes", "No")],
        "color": [("a", "Yes", "yes"), ("a", "No", "It is not")],
        "code_reasoning": [("c", "No", "no."), ("c", "Yes", "Yes")],
    }
    rows["existence"].append(("b", "No", "no"))
    for task, answers in rows.items():
        text = "".join(f"{i}.png\tQ{n}\t{gt}\t{a}\n" for n, (i, gt, a) in enumerate(answers))
        (folder / f"{task}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("parser", "golden"),
    [
        # strict: yes no ? yes yes ?
        (None, (3 / 6, 2 / 3, 2 / 3, 2 / 3, 3 / 6, 2)),
        ("strict", (3 / 6, 2 / 3, 2 / 3, 2 / 3, 3 / 6, 2)),
        # reference: yes no yes yes yes no
        ("reference", (5 / 6, 3 / 4, 1, 6 / 7, 4 / 6, 0)),
        # vcd: "A snowboard" is asked for a yes, and "There is not." for a no that it contains
        ("vcd", (4 / 6, 2 / 3, 2 / 3, 2 / 3, 3 / 6, 0)),
    ],
)
def test_pope(pope: tuple[Path, Path], parser: str | None, golden: Sequence[float]) -> None:
    wanted = () if parser is None else ("--parser", parser)
    found = scored("pope", "--questions", pope[0], "--answers", pope[1], *wanted)
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unknown")
    assert [found[name] for name in names] == pytest.approx(golden)
    assert found["counted"] == {"questions": 6, "images": 3}
    assert found["files"] == {str(p): DIGEST(p.read_bytes()).hexdigest() for p in pope}
    assert found["readers"] == ({parser: 1} if parser else {"strict": 1, "reference": 1})
    assert ("reference.accuracy" in found) is (parser is None)
    assert isinstance(found["unknown"], int)


def test_chair(chair: tuple[Path, Path]) -> None:
    found = scored("chair", "--captions", chair[0], "--ground-truth", chair[1])
    golden = {
        "chair_s": 2 / 3,
        "chair_i": 3 / 6,  # bench, and two stools; repeats count
        "recall": 2 / 3,  # dog and person of dog, bus and person; image 4 has no caption
        "f1": 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3),
        "mean_length": (7 + 2 + 5) / 3,
        "truncated": 0,
    }
    assert {name: found[name] for name in golden} == pytest.approx(golden)
    assert found["counted"] == {"captions": 3, "images": 3}
    assert found["notes"] == ["3 of the 4 images of the ground truth have a caption"]
    assert found["readers"] == {"simple": 2}


def test_chair_with_own_synonyms(chair: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / "synonyms.txt"
    own.write_text("dog\nbus\nperson, man\ntie\n")
    found = scored("chair", "--captions", chair[0], "--ground-truth", chair[1], "--synonyms", own)
    assert (found["chair_s"], found["chair_i"]) == (0, 0)
    assert str(own) in str(found["files"])


def test_chair_from_coco(chair: tuple[Path, Path], tmp_path: Path) -> None:
    options: list[str | Path] = ["--captions", chair[0], "--cache", tmp_path / "cache"]
    for part, images in (("val", ("1", "2")), ("train", ("3", "4"))):
        kinds = ("dog", "bus", "person", "tie")
        instances = {
            "images": [{"id": int(i), "file_name": f"{i}.jpg"} for i in images],
            "categories": [{"id": n, "name": kind} for n, kind in enumerate(kinds)],
            "annotations": [
                {"image_id": int(i), "category_id": kinds.index(kind)}
                for i in images
                for kind in TRUTH[i]
            ],
        }
        captions = {"annotations": [{"image_id": int(i), "caption": "so"} for i in images]}
        for option, name, value in (
            ("--instances", f"instances_{part}.json", instances),
            ("--coco-captions", f"captions_{part}.json", captions),
        ):
            (tmp_path / name).write_text(json.dumps(value))
            options += [option, tmp_path / name]
    given = scored("chair", "--captions", chair[0], "--ground-truth", chair[1])
    for _ in range(2):  # the second from the cache
        found = scored("chair", *options)
        assert {n: found[n] for n in given if n != "files"} == {
            n: given[n] for n in given if n != "files"
        }
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_mme(mme: Path) -> None:
    found = scored("mme", "--answers", mme)
    golden = {
        "perception": 75 + 50 + 50 + 0,
        "unknown": 1,
        "truncated": 0,
        "cognition": 200,
        "hallucination": 175,
        "existence": 125,
        "color": 50,
        "code_reasoning": 200,
        "existence.acc": 0.75,
        "existence.acc_plus": 0.5,
        "existence.score": 125,
    }
    assert {name: found[name] for name in golden} == pytest.approx(golden)
    assert found["notes"] == [
        "perception is over 2 of 10 tasks",
        "cognition is over 1 of 4 tasks",
        "hallucination is over 2 of 4 tasks",
    ]
    (mme / "code_reasoning.txt").unlink()
    assert scored("mme", "--answers", mme)["cognition"] is None


def test_amber(tmp_path: Path) -> None:
    path = write_amber(tmp_path)
    texts = ("Yes", "No", "Yes", "No", "No", "no.", "Perhaps", "No")
    rows = [{"id": 1005 + i, "response": text} for i, text in enumerate(texts)]
    said = tmp_path / "said.json"
    said.write_text(json.dumps(rows))
    found = scored("amber", "--questions", path, "--answers", said)
    golden = {
        "accuracy": 5 / 8,
        "precision": 4 / 5,
        "recall": 4 / 5,
        "f1": 4 / 5,
        "yes_ratio": 2 / 8,
        "unknown": 1,
        "existence.accuracy": 1,
        "official.existence.accuracy": 1 / 2,
        "official.unknown": 2,
    }
    assert {name: found[name] for name in golden} == pytest.approx(golden)
    assert len(QUESTIONS) == 8 and "positive is no" in str(found["notes"])
    told = scored("amber", "--questions", path, "--answers", said, "--parser", "official")
    assert told["accuracy"] == 1 / 2 and told["readers"] == {"official": 1}


def test_tables_name_all_that_decides(pope: tuple[Path, Path], mme: Path) -> None:
    result = run("pope", "--questions", pope[0], "--answers", pope[1])
    assert result.exit_code == 0, result.output
    shown = result.stdout
    row = next(line for line in shown.splitlines() if line.strip().startswith("strict"))
    assert row.split() == ["strict", "50.0", "66.7", "66.7", "66.7", "50.0", "2"]
    for part in (
        "pope: 6 questions, 3 images",
        "accuracy % ↑",
        "read by strict (version 1), reference (version 1)",
        f"sha256 {DIGEST(pope[1].read_bytes()).hexdigest()}  {pope[1]}",
    ):
        assert part in shown
    shown = run("mme", "--answers", mme).stdout
    assert "\N{EN DASH}" not in shown
    (mme / "code_reasoning.txt").unlink()
    assert "\N{EN DASH}" in run("mme", "--answers", mme).stdout  # no task of cognition is there


def edited(path: Path, change: Callable[[bytes], bytes]) -> Path:
    other = path.with_name("edited" + path.suffix)
    other.write_bytes(change(path.read_bytes()))
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data[: data.rindex(b"{")],
            r"answers 5 of the 6 questions in .*pope.json (not 5): ",
        ),
        (lambda data: data[:-9], r"edited.jsonl:6 is not valid JSON"),
        (
            lambda data: data + data.split(b"\n")[0] + b"\n",
            r"edited.jsonl:7 answers sample 0 a second",
        ),
        (
            lambda data: data.replace(b": 5", b": 77"),
            r"edited.jsonl:6 answers the question 77, which is",
        ),
        (lambda data: data.replace(b'"text"', b'"reply"'), r"edited.jsonl:1 lacks 'text'"),
        (lambda data: data.decode().encode("utf-16"), r"is not UTF-8 text (it is UTF-16)"),
        (lambda data: b"", r"edited.jsonl is empty"),
    ],
)
def test_faulty_answers_to_pope(
    pope: tuple[Path, Path], change: Callable[[bytes], bytes], message: str
) -> None:
    answers = edited(pope[1], change)
    told = refused("pope", "--questions", pope[0], "--answers", answers)
    for part in message.split(".*"):
        assert part in told


def test_marks_and_line_ends_of_answers_do_not_matter(pope: tuple[Path, Path]) -> None:
    plain = scored("pope", "--questions", pope[0], "--answers", pope[1])
    other = edited(pope[1], lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    found = scored("pope", "--questions", pope[0], "--answers", other)
    assert {**found, "files": 0} == {**plain, "files": 0}


def test_other_refusals(
    pope: tuple[Path, Path], chair: tuple[Path, Path], mme: Path, tmp_path: Path
) -> None:
    captions, truth = chair
    assert "'strikt'. Did you mean 'strict'?" in refused(
        "pope", "--questions", pope[0], "--answers", pope[1], "--parser", "strikt", status=2
    )
    told = refused("chair", "--captions", captions, status=2)
    assert "give both the instances and the captions file of COCO, or a ground truth" in told
    known = ("chair", "--captions", captions, "--ground-truth", truth)
    told = refused(*known, "--lemmas", "word", status=2)
    assert "no scorer of captions is called 'word'" in told
    told = refused(*known, "--cache", tmp_path, status=2)
    assert "--cache keeps what --instances and --coco-captions give" in told
    truth.write_text('{"1": ["dog"], "2": [], "1": []}')
    told = refused("chair", "--captions", captions, "--ground-truth", truth)
    assert "the key '1' stands there twice" in told
    truth.write_text('{"1": ["dog"], "3": []}')
    told = refused("chair", "--captions", captions, "--ground-truth", truth)
    assert f"{captions}:2 is about the image 2, which is not in {truth}" in told
    bare = mme / "count.txt"
    bare.write_text("a.png\tQ\tYes\na.png\tR\tNo\n")
    assert f"{bare}:1 has no answer (and 1 more)" in refused("mme", "--answers", mme)


@pytest.mark.parametrize("command", ["pope", "chair", "mme", "amber"])
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"cdkit score {command}" in result.stdout


def test_scores_are_those_of_the_benchmark(chair: tuple[Path, Path]) -> None:
    benchmark = CHAIR(ground_truth=chair[1])
    whole = score_chair(benchmark, chair[0])
    assert whole.metrics == benchmark.tally_of(read_answers(chair[0])).values()

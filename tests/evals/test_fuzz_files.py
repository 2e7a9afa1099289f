"""Files of every format that cdkit reads, damaged at random with a fixed seed.

A damaged file is an error with its name, and the line where there are lines, or gives the right
result: never a traceback, and never a score that one damaged row cannot explain.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amber_files import QUESTIONS, write_amber, write_amber_generative
from choice_files import hallusion_rows, write_hallusionbench, write_scienceqa

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_toml import read_grid
from cdkit.evals.benchmarks.amber_generative import AMBERGenerative
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.scienceqa import ScienceQA
from cdkit.evals.benchmarks.score_captions import score_amber_generative, score_opope
from cdkit.evals.benchmarks.score_choices import score_hallusionbench, score_scienceqa
from cdkit.evals.benchmarks.score_files import score_amber, score_chair, score_mme, score_pope
from cdkit.evals.runner.read_run import read_run
from cdkit.evals.runner.run_folder import read_settings
from evals.eval_run import answer, draw, parts_of

pytestmark = pytest.mark.usefixtures("as_for_a_user")

ROUNDS = 30
"""Damages of each kind of file, of its values and of its bytes each."""
NAMES = ("person", "dog", "cat", "kite")
ODD: Sequence[object] = (
    *(None, True, 1.5, -3, 10**30, 1e308, math.nan, math.inf, "", "   ", "\ud800", "\u2028x"),
    *([], {}, [["x"]], {"a": {"b": []}}, "<think>hm</think>"),
)


@dataclass(frozen=True)
class Case:
    """A folder of sound files, and what reads them: the file to damage -> its score."""

    files: tuple[str, ...]
    read: Callable[[Path], float]
    rows: int
    """How many rows share the score, so that one of them moves it by 1 / rows at most."""


def write(path: Path, rows: object, *, lines: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines and isinstance(rows, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def pope(folder: Path, *, lines: bool) -> Case:
    questions = [
        {"question_id": i, "image": f"{i // 2}.jpg", "text": f"Is it {i} ?", "label": label}
        for i, label in enumerate(("yes", "no") * 5)
    ]
    answers = [{"question_id": q["question_id"], "text": str(q["label"])} for q in questions]
    write(folder / "q.json", questions, lines=lines)
    write(folder / "a.json", answers, lines=lines)

    def read(here: Path) -> float:
        scored = score_pope(here / "q.json", here / "a.json", ["strict", "reference"])
        assert scored.counted["questions"] > 0
        return float(scored.metrics["accuracy"] or 0)

    return Case(("q.json", "a.json"), read, len(questions))


def amber(folder: Path) -> Case:
    write_amber(folder, images=("a.jpg", "b.jpg"))
    answers = [
        {"id": 1005 + i, "response": truth.capitalize()} for i, (_, truth) in enumerate(QUESTIONS)
    ]
    write(folder / "a.json", answers, lines=False)

    def read(here: Path) -> float:
        query = here / "query" / "query_discriminative.json"
        scored = score_amber(query, None, here / "a.json", ["strict"])
        return float(scored.metrics["accuracy"] or 0)

    names = ("query/query_discriminative.json", "annotations.json", "a.json")
    return Case(names, read, len(QUESTIONS))


def mme(folder: Path) -> Case:
    folder.mkdir(parents=True)
    rows = [
        f"{i}.jpg\tIs it {word} ?\t{word.capitalize()}\t{word.capitalize()}"
        for i in range(6)
        for word in ("yes", "no")
    ]
    (folder / "existence.txt").write_text("\n".join(rows) + "\n")

    def read(here: Path) -> float:
        found = score_mme(here).metrics
        return (found["existence.acc"] or 0) + (found["existence.acc_plus"] or 0)

    return Case(("existence.txt",), read, 2)


def chair(folder: Path, *, lines: bool) -> Case:
    folder.mkdir(parents=True)
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in range(1, 7)]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    annotations = [{"image_id": i, "category_id": i % len(NAMES)} for i in range(1, 7)]
    captions = [{"image_id": i, "caption": f"a {NAMES[i % len(NAMES)]}"} for i in range(1, 7)]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    write(folder / "instances.json", coco, lines=False)
    write(folder / "captions.json", {"annotations": captions}, lines=False)
    write(folder / "said.json", captions, lines=lines)

    def read(here: Path) -> float:
        benchmark = CHAIR(instances=here / "instances.json", captions=here / "captions.json")
        scored = score_chair(benchmark, here / "said.json")
        assert scored.counted["captions"] > 0
        return float(scored.metrics["recall"] or 0)

    return Case(("instances.json", "captions.json", "said.json"), read, 1)


def truth(folder: Path) -> Case:
    objects = {str(i): [NAMES[i % len(NAMES)]] for i in range(1, 7)}
    write(folder / "truth.json", objects, lines=False)
    said = [{"image_id": i, "caption": f"a {NAMES[i % len(NAMES)]}"} for i in range(1, 7)]
    write(folder / "said.json", said, lines=True)

    def read(here: Path) -> float:
        scored = score_chair(CHAIR(ground_truth=here / "truth.json"), here / "said.json")
        assert scored.counted["captions"] > 0
        return float(scored.metrics["recall"] or 0)

    return Case(("truth.json", "said.json"), read, 1)


def opope(folder: Path) -> Case:
    asked = [
        {
            "question_id": 2 * i + there,
            "image": f"COCO_val2014_{i + 1:012}.jpg",
            "text": f"Is there a {NAMES[(i + 1 - there) % len(NAMES)]} in the image?",
            "label": ("no", "yes")[there],
        }
        for i in range(6)
        for there in (0, 1)
    ]
    said = [{"image_id": i + 1, "caption": f"a {NAMES[i % len(NAMES)]}"} for i in range(6)]
    write(folder / "q.json", asked, lines=True)
    write(folder / "said.json", said, lines=True)

    def read(here: Path) -> float:
        scored = score_opope(here / "q.json", here / "said.json")
        assert scored.counted["captions"] > 0
        return float(scored.metrics["accuracy"] or 0)

    return Case(("q.json", "said.json"), read, 1)


def amber_generative(folder: Path) -> Case:
    write_amber_generative(folder)
    texts = ("a sky, a person, a forest, leaves", "ships on a sea", "a table")
    said = [{"id": i, "response": text} for i, text in enumerate(texts, start=1)]
    write(folder / "a.json", said, lines=False)

    def read(here: Path) -> float:
        benchmark = AMBERGenerative(here / "query" / "query_generative.json")
        scored = score_amber_generative(benchmark, here / "a.json")
        return 1 - float(scored.metrics["simple.chair"] or 0)

    names = ("query/query_generative.json", "annotations.json", "a.json")
    return Case((*names, "relation.json", "safe_words.txt"), read, 1)


def hallusionbench(folder: Path) -> Case:
    write_hallusionbench(folder)
    said = [
        {**row, "model_prediction": ("No", "Yes")[row["gt_answer"] == "1"]}
        for row in hallusion_rows()
    ]
    write(folder / "a.json", said, lines=False)

    def read(here: Path) -> float:
        scored = score_hallusionbench(here / "HallusionBench.json", here / "a.json", ["strict"])
        return float(scored.metrics["accuracy"] or 0)

    return Case(("HallusionBench.json", "a.json"), read, len(said))


def scienceqa(folder: Path) -> Case:
    samples = ScienceQA(write_scienceqa(folder)).samples()
    write(
        folder / "a.json",
        [{"question_id": s.id, "text": str(s.target)} for s in samples],
        lines=True,
    )

    def read(here: Path) -> float:
        scored = score_scienceqa(here / "problems.json", here / "a.json", ["letter", "llava"])
        return float(scored.metrics["accuracy"] or 0)

    return Case(("problems.json", "pid_splits.json", "a.json"), read, len(samples))


MAKERS: Mapping[str, Callable[[Path], Case]] = {
    "pope lines": lambda folder: pope(folder, lines=True),
    "pope list": lambda folder: pope(folder, lines=False),
    "amber": amber,
    "mme": mme,
    "chair lines": lambda folder: chair(folder, lines=True),
    "chair list": lambda folder: chair(folder, lines=False),
    "chair truth": truth,
    "opope": opope,
    "amber generative": amber_generative,
    "hallusionbench": hallusionbench,
    "scienceqa": scienceqa,
}


# ---- damages -------------------------------------------------------------------------------------


def places(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside a value."""
    found = [at] if at else []
    if isinstance(value, dict):
        found += [way for key, own in value.items() for way in places(own, (*at, key))]
    if isinstance(value, list):
        found += [way for i, own in enumerate(value) for way in places(own, (*at, i))]
    return found


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one thing in it dropped, doubled, retyped, nested or swapped."""
    value = json.loads(json.dumps(value))
    *way, last = rng.choice(places(value))
    inside = value
    for key in way:
        inside = inside[key]
    match rng.choice(("drop", "double", "retype", "retype", "nest", "swap", "rename", "wrap")):
        case "drop":
            del inside[last]
        case "double" if isinstance(inside, list):
            inside.insert(last, inside[last])
        case "retype":
            inside[last] = rng.choice(ODD)
        case "nest":
            inside[last] = rng.choice(([inside[last]], {"value": inside[last]}))
        case "swap" if isinstance(inside, list):
            rng.shuffle(inside)
        case "rename" if isinstance(inside, dict):
            inside[f"{last}_"] = inside.pop(last)
        case "wrap":
            return rng.choice(([value], {"data": value}, [], {}, None, 3, "text"))
        case _:
            inside[last] = rng.choice(ODD)
    return value


def of_values(data: bytes, rng: random.Random) -> bytes:
    text = data.decode()
    if text.lstrip().startswith("[") or text.startswith("{\n"):
        return json.dumps(damaged(json.loads(text), rng), indent=1).encode()
    if text.startswith("{"):
        rows = damaged([json.loads(line) for line in text.splitlines()], rng)
        listed = rows if isinstance(rows, list) else [rows]
        return "".join(json.dumps(row) + "\n" for row in listed).encode()
    rows = [line.split("\t") for line in text.splitlines()]
    rows = damaged(rows, rng)
    cells = [row if isinstance(row, list) else [row] for row in rows or ()] if rows != 3 else []
    lines = ["\t".join(str(cell) for cell in row) + "\n" for row in cells]
    return "".join(lines).encode("utf-8", "surrogatepass")


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    cut = rng.randrange(len(data))
    match rng.randrange(9):
        case 0:
            return data[:cut]
        case 1:
            return data[cut:]
        case 2:
            return data + data
        case 3:
            return data.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
        case 4:
            return data[:cut] + b"\xe9" + data[cut:]  # Latin-1
        case 5:
            return data[:cut] + rng.choice((b"\0", b"\n", b"\r", b"\t", b"\\", b'"')) + data[cut:]
        case 6:
            return rng.choice((b"", b"\n", b"[]", b"{}", b"null", b"[" * 5000, b"\xff\xfe"))
        case 7:
            stop = min(len(data), cut + 8)
            return data[:cut] + data[stop:]
        case _:
            return bytes(rng.randrange(256) for _ in range(40))


def same(data: bytes) -> list[bytes]:
    """Other ways to write a file, that change nothing."""
    text = data.decode()
    return [b"\xef\xbb\xbf" + data, text.replace("\n", "\r\n").encode(), data + b"\n\n"]


def copied(folder: Path, to: Path, case: Case, name: str, data: bytes) -> Path:
    for file in case.files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        (to / file).write_bytes(data if file == name else (folder / file).read_bytes())
    return to


def check(read: Callable[[], float], file: Path, data: bytes) -> float | None:
    """The score, or None where there is one error with the file's name; all else fails."""
    try:
        score = read()
    except CdkitError as error:
        message = str(error)
        assert str(file.parent) in message, (message, data[:400])
        assert "Traceback" not in message
        return None
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}, of {data[:600]!r}") from error
    assert math.isfinite(score), data[:400]
    return score


@pytest.mark.parametrize("kind", MAKERS)
def test_benchmark_files(kind: str, tmp_path: Path) -> None:
    whole = tmp_path / "sound"
    case = MAKERS[kind](whole)
    right = case.read(whole)
    assert right > 0.99
    rng, refused, read = random.Random(kind), 0, 0
    for name in case.files:
        data = (whole / name).read_bytes()
        for number, other in enumerate(same(data)):
            here = copied(whole, tmp_path / f"same{number}", case, name, other)
            assert case.read(here) == right, other[:200]
        for change in (of_values, of_bytes):
            for _ in range(ROUNDS):
                new = change(data, rng)
                here = copied(whole, tmp_path / "damaged", case, name, new)
                score = check(lambda here=here: case.read(here), here / name, new)  # type: ignore[misc]
                refused, read = refused + (score is None), read + (score is not None)
                if score is not None:
                    least = right - 2 / case.rows - 1e-9
                    assert score >= least, f"{name} gives {score}: {new[:600]!r}"
    assert refused > read > 0


def test_an_error_names_the_row(tmp_path: Path) -> None:
    """Where one row is damaged, and the file is else whole, the error has its place."""
    listed = ("pope lines", "pope list", "chair lines", "amber")
    for kind in (*listed, "opope", "amber generative", "hallusionbench"):
        whole = tmp_path / kind
        case = MAKERS[kind](whole)
        for name in (name for name in case.files if name.endswith(".json")):
            text = (whole / name).read_text()
            lines = not text.startswith(("[", "{\n"))
            value = [json.loads(x) for x in text.splitlines()] if lines else json.loads(text)
            if not isinstance(value, list):
                continue
            rows: list[object] = [None, [], {}, {"x": 1}, 3, "text"]
            for odd in rows:
                value_now = [*value[:4], odd, *value[5:]]
                here = copied(whole, tmp_path / "damaged", case, name, b"")
                write(here / name, value_now, lines=lines)
                place = min(4, len(value))
                with pytest.raises(CdkitError, match=rf":{place + 1}|\[{place}\]"):
                    case.read(here)


# ---- TOML ----------------------------------------------------------------------------------------

GRID = Path(__file__).resolve().parents[2] / "evals" / "ablation" / "configs" / "default.toml"
TOML_ODD = ("[]", "{}", "true", "-1", "1e308", "nan", '""', '"x"', "[[]]", "1979-05-27", "10**3")


def of_toml(text: str, rng: random.Random) -> bytes:
    """One line of a TOML file dropped, doubled, retyped, renamed or cut."""
    lines = text.splitlines()
    i = rng.choice([i for i, line in enumerate(lines) if line.strip() and line[0] != "#"])
    key, equals, _ = lines[i].partition("=")
    match rng.randrange(5):
        case 0:
            del lines[i]
        case 1:
            lines.insert(i, lines[i])
        case 2 if equals:
            lines[i] = f"{key}= {rng.choice(TOML_ODD)}"
        case 3:
            lines[i] = "x" + lines[i]
        case _:
            lines[i] = lines[i][: rng.randrange(len(lines[i]))]
    return "\n".join(lines).encode()


def reads_method(path: Path) -> float:
    return float(sum(1 for _ in cdkit.load(path).parts()))


def reads_grid(path: Path) -> float:
    return float(len(read_grid(path).benchmarks))


@pytest.mark.parametrize("kind", ["grid", "cmac", "deco", "imccd_chair", "opera", "pai", "vdd"])
@pytest.mark.filterwarnings("ignore::cdkit.CdkitWarning")
def test_toml_files(kind: str, tmp_path: Path) -> None:
    read = reads_grid if kind == "grid" else reads_method
    presets = Path(__file__).resolve().parents[2] / "strategies" / "presets"
    source = GRID if kind == "grid" else presets / f"{kind}.toml"
    data, rng, refused = source.read_bytes(), random.Random(kind), 0
    path = tmp_path / "file.toml"
    for other in same(data):
        path.write_bytes(other)
        assert read(path) == read(source)
    for i in range(ROUNDS):
        new = of_toml(data.decode(), rng) if i % 3 else of_bytes(data, rng)
        path.write_bytes(new)
        refused += check(lambda: read(path), path, new) is None
    assert refused > ROUNDS / 4


# ---- run folders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    pope_alone = parts_of(draw(folder / "world", images=2))[:1]
    answer(pope_alone, folder / "run", method="plain")
    return folder / "run"


def right_answers(folder: Path) -> float:
    (found,) = read_run(folder)
    assert read_settings(folder)
    total = 0.0
    for part in found.parts.values():
        for seed in part.answers:
            total += len(part.answers[seed])
        assert all(isinstance(a.text, str) for own in part.answers.values() for a in own.values())
    return total


@pytest.mark.parametrize("name", ["predictions.jsonl", "manifest.json", "settings.json"])
def test_run_folders(name: str, run: Path, tmp_path: Path) -> None:
    files = tuple(path.name for path in run.iterdir() if path.is_file())
    assert name in files
    case = Case(files, right_answers, 1)
    right, data, rng = right_answers(run), (run / name).read_bytes(), random.Random(name)
    refused = 0
    for change in (of_values, of_bytes):
        for _ in range(ROUNDS):
            new = change(data, rng)
            here = copied(run, tmp_path / "run", case, name, new)
            found = check(lambda here=here: right_answers(here), here / name, new)  # type: ignore[misc]
            refused += found is None
            if found is not None and name == "predictions.jsonl":
                assert found >= right - 1, new[:600]
    assert refused > ROUNDS / 3

"""MME: the parser's four characters, points by hand, and each fault of a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.mme import COGNITION, MME, PERCEPTION, parse
from cdkit.evals.statistics.run_comparison import compare
from cdkit.interfaces.sample import Answer


def pair(image: str, first: str = "Yes", second: str = "No") -> str:
    return f"{image}\tIs it?\t{first}\n{image}\tIs it not?\t{second}\n"


def folder(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for task, text in files.items():
        (path / f"{task}.txt").write_text(text)
    return path


def right(benchmark: MME, wrong: Sequence[str] = ()) -> dict[str, Answer]:
    flipped = {"yes": "No.", "no": "Yes."}
    return {
        s.id: Answer(flipped[s.target or ""] if s.id in wrong else (s.target or "").title())
        for s in benchmark.samples()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("No", "no"),
        ("Yes, it is", "yes"),
        (" yes", "yes"),
        ("  yes", "other"),  # the fifth character is not looked at
        ("not really", "no"),
        ("I know", "other"),
        ("Snow", "no"),
        ("", "other"),
        ("maybe", "other"),
    ],
)
def test_the_parser(text: str, expected: str) -> None:
    assert parse(text) == expected


def test_points_by_hand(tmp_path: Path) -> None:
    files = folder(tmp_path / "mme", existence=pair("a.png") + pair("b.png"), color=pair("a.png"))
    benchmark = MME(files)
    assert [sample.id for sample in benchmark.samples()] == [
        *("existence/1", "existence/2", "existence/3", "existence/4", "color/1", "color/2")
    ]
    answers = right(benchmark, wrong=["existence/4"]) | {"color/1": Answer("It is")}
    assert benchmark.score(answers) == pytest.approx(
        {
            "existence.acc": 0.75,
            "existence.acc_plus": 0.5,
            "existence.score": 125,
            "color.acc": 0.5,
            "color.acc_plus": 0,
            "color.score": 50,
            "perception (2 of 10 tasks)": 175,
            "hallucination (2 of 4 tasks)": 175,
            "unknown": 1,
            "truncated": 0,
        }
    )


def test_whole_totals_have_plain_names(tmp_path: Path) -> None:
    files = folder(tmp_path / "mme", **{task: pair("a.png") for task in (*PERCEPTION, *COGNITION)})
    score = MME(files).score(right(MME(files)))
    assert (score["perception"], score["cognition"], score["hallucination"]) == (2000, 800, 800)
    some = MME(files, tasks=("color", "code_reasoning"))
    assert [s.id for s in some.samples()] == [
        *("color/1", "color/2", "code_reasoning/1", "code_reasoning/2")
    ]
    assert some.score(right(some))["cognition (1 of 4 tasks)"] == 200


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=6))
def test_weights_are_repeated_images(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bool, bool, int]]
) -> None:
    rows.append((True, False, 1))

    def ask(rows: Sequence[tuple[bool, bool, int]]) -> tuple[MME, dict[str, Answer]]:
        text = "".join(pair(f"{i}.png") for i in range(len(rows)))
        benchmark = MME(folder(tmp_path_factory.mktemp("mme") / "mme", count=text))
        flat = [ok for first, second, _ in rows for ok in (first, second)]
        wrong = [f"count/{i}" for i, ok in enumerate(flat, start=1) if not ok]
        return benchmark, right(benchmark, wrong)

    benchmark, answers = ask(rows)
    weights = np.array([[times for _, _, times in rows]], dtype=float)
    weighed = benchmark.tally(answers).at(weights)
    repeated, expected = ask([row for row in rows for _ in range(row[2])])
    assert {n: v[0] for n, v in weighed.items()} == pytest.approx(repeated.score(expected))


def test_an_image_is_one_unit_over_all_tasks(tmp_path: Path) -> None:
    text = "".join(pair(f"{i}.png") for i in range(3))
    benchmark = MME(folder(tmp_path / "mme", count=text, color=text), subfolder="{task}/images")
    assert benchmark.samples()[0].image == "count/images/0.png"
    ours = benchmark.tally(right(benchmark))
    theirs = benchmark.tally(right(benchmark, wrong=["count/1", "color/1"]))
    assert ours.images == ("0.png", "1.png", "2.png")
    result = compare([ours], [theirs], resamples=50)["hallucination (2 of 4 tasks)"]
    assert result.p == 1.0 and result.difference.value == pytest.approx(100)
    per_task = compare([ours], [theirs], resamples=50)["count.acc"]
    assert (per_task.gained, per_task.lost) == (1, 0)


def test_images_of_one_name_are_one_only_where_tasks_share_photos(tmp_path: Path) -> None:
    text = pair("0001.png")
    tasks = {"count": text, "color": text, "code_reasoning": text, "text_translation": text}
    benchmark = MME(folder(tmp_path / "mme", **tasks), subfolder="{task}")
    units = {"0001.png", "code_reasoning/0001.png", "text_translation/0001.png"}
    assert set(benchmark.tally(right(benchmark)).images) == units


def release(path: Path) -> Path:
    """The published folders: a large task, its images apart, and a small one with all in one."""
    apart = path / "artwork" / "questions_answers_YN", path / "artwork" / "images"
    for place in (*apart, path / "OCR", path / "eval_tool"):
        place.mkdir(parents=True)
    for stem, end in (("2", ".jpg"), ("10", ".PNG")):
        (apart[0] / f"{stem}.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
        (apart[1] / f"{stem}{end}").touch()
    (path / "OCR" / "0001.txt").write_bytes(b"\xef\xbb\xbfIs it?\tYes\r\nIs it not?\tNo")
    (path / "OCR" / "0001.jpg").touch()
    (path / "OCR" / ".DS_Store").touch()
    (path / "eval_tool" / "calculation.py").touch()
    return path


def test_the_folders_of_the_release(tmp_path: Path) -> None:
    benchmark = MME(release(tmp_path / "mme"))
    assert [(s.id, s.image, s.prompt, s.target) for s in benchmark.samples()] == [
        ("artwork/1", "artwork/images/10.PNG", "Is it?", "yes"),
        ("artwork/2", "artwork/images/10.PNG", "Is it not?", "no"),
        ("artwork/3", "artwork/images/2.jpg", "Is it?", "yes"),
        ("artwork/4", "artwork/images/2.jpg", "Is it not?", "no"),
        ("OCR/1", "OCR/0001.jpg", "Is it?", "yes"),
        ("OCR/2", "OCR/0001.jpg", "Is it not?", "no"),
    ]
    assert all(sample.image_in(tmp_path / "mme").is_file() for sample in benchmark.samples())
    assert benchmark.score(right(benchmark))["perception (2 of 10 tasks)"] == 400
    before = benchmark.sources()
    assert [Path(path).name for path in before] == ["10.txt", "2.txt", "0001.txt"]
    (tmp_path / "mme" / "OCR" / "0001.txt").write_text("Is it?\tYes\nIs it not ?\tNo")
    after = MME(tmp_path / "mme").sources()
    assert [before[path] == after[path] for path in before] == [True, True, False]
    assert len(MME(tmp_path / "mme", tasks=("OCR",)).samples()) == 2


def test_the_release_and_the_text_files_ask_the_same(tmp_path: Path) -> None:
    benchmark = MME(release(tmp_path / "mme"))
    texts: dict[str, str] = {}
    for sample in benchmark.samples():
        task, name = sample.id.split("/")[0], sample.image.split("/")[-1]
        texts[task] = texts.get(task, "") + f"{name}\t{sample.prompt}\t{sample.target}\n"
    plain = MME(folder(tmp_path / "text", **texts))
    keys = [(s.id, s.group, s.prompt, s.target) for s in plain.samples()]
    assert keys == [(s.id, s.group, s.prompt, s.target) for s in benchmark.samples()]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("OCR/7.txt", "Q\tYes\nR\tNo", r"7.txt asks about 7, and .*OCR has no image of this name"),
        ("OCR/0001.png", "", r"0001.txt asks about 0001, and .* has 0001.jpg, 0001.png of this"),
        ("OCR/0001.txt", "Q\tYes", r"0001.txt:1 is about 0001.jpg, .* about nothing"),
        ("OCR/0001.txt", "Q\nR\tNo", r"0001.txt:1 has 2 cells, or an empty one"),
        ("OCR/0001.txt", "Q\tYes\nR\tMaybe", r"0001.txt:2 has the label 'Maybe'"),
        ("OCR/0001.txt", "", r"0001.txt is empty"),
        ("count.txt", pair("a.png"), r"has both count.txt and the folder OCR: keep either the te"),
        ("count/notes.md", "", r"count has no question: a task's folder holds a .txt for each"),
    ],
)
def test_a_faulty_release(tmp_path: Path, file: str, text: str, message: str) -> None:
    files = release(tmp_path / "mme")
    (files / file).parent.mkdir(exist_ok=True)
    (files / file).write_text(text)
    with pytest.raises(CdkitError, match=message):
        MME(files)


def test_recorded_answers_are_read(tmp_path: Path) -> None:
    files = folder(tmp_path / "mme", OCR="")
    rows = b"a.png\tIs it?\tYes\tYes, it is\r\na.png\tIs it not?\tno\t\r\n"
    (files / "OCR.txt").write_bytes(rows)
    benchmark = MME(files)
    assert benchmark.recorded() == {"OCR/1": Answer("Yes, it is"), "OCR/2": Answer("")}
    assert benchmark.score(benchmark.recorded())["OCR.score"] == 50
    assert MME(folder(tmp_path / "bare", OCR=pair("a.png"))).recorded() == {}


def test_crlf_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    plain = MME(folder(tmp_path / "a", count=pair("a.png")))
    files = folder(tmp_path / "b", count="")
    data = b"\xef\xbb\xbf" + pair("a.png").replace("\n", "\r\n").encode() + b"\r\n"
    (files / "count.txt").write_bytes(data)
    assert MME(files).samples() == plain.samples()
    assert plain.sources().keys() == {str(tmp_path / "a" / "count.txt")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"count.txt is empty"),
        ("a.png\tIs it?\n", r"count.txt:1 has 2 cells, or an empty one: a row is image"),
        ("a.png\t\tYes\n", r"count.txt:1 has 3 cells, or an empty one"),
        ("a.png\tIs it?\tPerhaps\na.png\tQ\tNo\n", r"count.txt:1 has the label 'Perhaps'"),
        (pair("a.png") + "b.png\tIs it?\tNo\n", r"count.txt:3 is about b.png, .* about nothing"),
        ("a.png\tQ\tNo\nb.png\tQ\tNo\n", r"count.txt:1 is about a.png, .* about b.png: an image"),
        (pair("a.png") * 2, r"count.txt:3 asks the same of a.png again: each question stands once"),
        (pair("../a.png"), r"count.txt:1: the image name '../a.png' is not inside"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CdkitError, match=message):
        MME(folder(tmp_path / "mme", count=text))


def test_a_faulty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match=r"is no folder: MME is a folder with TASK.txt or TASK/"):
        MME(tmp_path / "none")
    empty = folder(tmp_path / "empty")
    with pytest.raises(CdkitError, match=r"has no file of any task: .* there is none"):
        MME(empty)
    with pytest.raises(CdkitError, match=r"'colour'. Did you mean 'color'\?"):
        MME(empty, tasks=("colour",))
    files = folder(tmp_path / "mme", count=pair("a.png"))
    with pytest.raises(CdkitError, match=r"has no file of color: .* there is count"):
        MME(files, tasks=("count", "color"))
    folder(files, colour=pair("a.png"))
    with pytest.raises(CdkitError, match=r"colour.txt: no MME task is called 'colour'. Did you"):
        MME(files)

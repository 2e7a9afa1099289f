"""`check` of a data folder: what is whole is called whole, and each fault by its name."""

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from amber_files import write_amber_generative
from choice_files import write_hallusionbench, write_scienceqa
from evals.data_folder import (
    IMAGES,
    pope_rows,
    question,
    write_folder,
    write_images,
    write_lines,
)
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.mme import TASKS
from cdkit.evals.data.catalogue import KnownFile, known_files
from cdkit.evals.data.check import FolderReport, check
from cdkit.evals.data.files_check import FileFound, examine

RANDOM = "pope/coco/coco_pope_random.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def problems(report: FolderReport) -> list[str]:
    return [text for part in report.parts for text in part.problems]


def notes(report: FolderReport) -> list[str]:
    return [text for part in report.parts for text in part.notes] + list(report.notes)


def test_a_whole_folder(folder: Path) -> None:
    report = check(folder, decode=True)
    assert report.whole and problems(report) == []
    first = report.parts[0]
    assert (first.name, first.bench, first.questions) == ("pope_coco_random", "pope", 4)
    assert first.labels == {"yes": 2, "no": 2}
    assert first.images is not None
    assert (first.images.referenced, dict(first.images.wrong)) == (2, {})
    (file,) = first.files
    assert (file.path, file.bytes) == (RANDOM, (folder / RANDOM).stat().st_size)
    assert [part.name for part in report.parts[1:]] == [
        "pope_coco_popular",
        "pope_coco_adversarial",
        "chair",
        "mme",
    ]
    absent = ["amber", "amber_generative", "hallusionbench", "scienceqa"]
    assert list(report.absent) == absent


def test_an_unknown_version_is_a_note(folder: Path) -> None:
    report = check(folder)
    sha256 = examine(folder / RANDOM, "").sha256
    assert f"{RANDOM} is of no known version: sha256 {sha256}" in notes(report)
    assert not any("annotations" in note for note in notes(report))  # COCO's are not catalogued


def cut(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")


def rows(*changed: dict[str, object]) -> Callable[[Path], None]:
    return lambda path: (write_lines(path, [*pope_rows(), *changed]), None)[1]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, ":4 is not valid JSON"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\xff\xfe\n"), "is not UTF-8 text"),
        (lambda path: path.write_text("1\t2\t3\n"), ":1 is not valid JSON"),
        (rows(question(1, "b.jpg", "x", "no")), ":5 has the question_id 1 again"),
        (rows({"question_id": 9, "image": "b.jpg", "label": "no"}), ":5 lacks 'text'"),
        (rows(question(9, "b.jpg", "x", "maybe")), ":5 has the label 'maybe'"),
        (rows(question(9, "../b.jpg", "x", "no")), ":5: the image name '../b.jpg' is not inside"),
        (rows(question(9, "/etc/b.jpg", "x", "no")), ":5: the image name '/etc/b.jpg' is not in"),
        (rows(question(9, "C:\\b.jpg", "x", "no")), ":5: the image name 'C:"),
    ],
)
def test_a_broken_file_is_a_problem_and_the_rest_is_told(
    folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder / RANDOM)
    report = check(folder)
    (problem,) = problems(report)
    assert message in problem and RANDOM in problem
    assert not report.whole
    assert [part.questions for part in report.parts] == [0, 4, 4, 2, 2]
    assert report.parts[0].files[0].sha256  # told of a file that does not parse, too


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mme/existence.txt", "0001.png\tA dog?\n", "existence.txt:1 has 2 cells"),
        ("mme/existence.txt", "a.png\tA?\tYes\nb.png\tB?\tNo\n", "the other row of its pair"),
        ("chair/synonyms.txt", ", puppy\n", "synonyms.txt:1 names no object"),
        ("chair/images.txt", "COCO_val2014_000000000009.jpg\n", "no image has the id 9"),
        ("coco/annotations/captions_val2014.json", "{}", "has no list 'annotations'"),
        ("coco/annotations/instances_val2014.json", '{"images": [', "is not valid JSON"),
    ],
)
def test_other_formats_that_are_broken(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    assert [message in problem for problem in problems(check(folder))] == [True]


def test_what_lies_half_there_is_a_problem(folder: Path) -> None:
    (folder / "coco/annotations/instances_val2014.json").unlink()
    report = check(folder)
    (told,) = problems(report)
    assert "it lacks coco/annotations/instances_val2014.json" in told
    assert len(report.parts) == 5


def test_twice_the_same_split_is_a_problem(folder: Path) -> None:
    shutil.copy(folder / RANDOM, folder / "pope")
    assert "pope_coco_random is there more than once" in problems(check(folder))[0]


def test_missing_images_are_counted_and_named(folder: Path) -> None:
    (folder / "coco/val2014" / IMAGES[1]).unlink()
    found = problems(check(folder))
    assert found == [f"1 of 2 images in coco/val2014 are missing ({IMAGES[1]})"] * 4
    shutil.rmtree(folder / "coco/val2014")
    assert problems(check(folder))[0] == "the folder coco/val2014 of its 2 images is not there"


def png_of_size(width: int, height: int) -> bytes:
    """The head of a PNG that claims a size: small to store, absurd to decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "unreadable"),
        (b"<html>404</html>", "unreadable"),
        (png_of_size(10_000, 10_000), "too large: more than 89,478,485 pixels"),  # a warning of PIL
        (png_of_size(60_000, 60_000), "too large: more than 89,478,485 pixels"),  # an error of PIL
    ],
)
def test_images_that_do_not_open(folder: Path, data: bytes, fault: str) -> None:
    (folder / "mme/0001.png").write_bytes(data)
    assert problems(check(folder)) == [f"1 of 1 images in mme are {fault} (0001.png)"]


def test_a_truncated_image_is_found_by_reading_it_all(folder: Path) -> None:
    path = folder / "mme/0001.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert check(folder).whole
    assert problems(check(folder, decode=True)) == [
        "1 of 1 images in mme are unreadable (0001.png)"
    ]


def test_a_link_out_of_the_folder_is_refused_and_a_linked_folder_is_not(
    folder: Path, tmp_path: Path
) -> None:
    photos = folder / "coco/val2014"
    shutil.move(photos, tmp_path / "elsewhere")
    photos.symlink_to(tmp_path / "elsewhere")
    assert check(folder).whole
    secret = tmp_path / "secret.jpg"
    shutil.move(photos / IMAGES[0], secret)
    (photos / IMAGES[0]).symlink_to(secret)
    told = f"1 of 2 images in coco/val2014 are links out of the image folder ({IMAGES[0]})"
    assert problems(check(folder)) == [told] * 4


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    photos = folder / "coco/val2014"
    (photos / IMAGES[0]).unlink()
    (photos / IMAGES[0]).symlink_to(IMAGES[1])
    assert check(folder).whole


def test_oddities_are_notes(folder: Path) -> None:
    path = folder / RANDOM
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    report = check(folder)
    assert report.whole
    assert f"{RANDOM} has: byte order mark, CRLF line ends" in notes(report)


def test_a_line_end_across_two_pieces_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdkit.evals.data.files_check._CHUNK", 4)
    path = tmp_path / "f"
    path.write_bytes(b"abc\r\nd")
    assert examine(path, "f").oddities == ("CRLF line ends",)
    path.write_bytes(b"abc\rd\n")
    assert examine(path, "f").oddities == ()


def test_odd_questions_are_notes(folder: Path) -> None:
    typo = question(7, IMAGES[0], "cup", "yes") | {"text": "Is there an owl in the imange?"}
    write_lines(folder / RANDOM, [*pope_rows(), typo, question(8, IMAGES[0], "dog", "yes")])
    report = check(folder)
    said = "\n".join(report.parts[0].notes)
    assert report.whole
    assert "'imange' stands for 'image' in 1 questions" in said
    assert f"asked more than once: 1 of the questions ({IMAGES[0]})" in said
    assert "labels are not balanced: 4 yes, 2 no" in said
    assert not any("imange" in note for note in report.parts[1].notes)


def test_tasks_of_mme_that_lack_are_a_note(folder: Path) -> None:
    (told,) = [note for note in notes(check(folder)) if "tasks are not there" in note]
    assert told.startswith("13 of 14 tasks are not there: count, position")


def test_a_misspelt_name_is_a_note(folder: Path) -> None:
    shutil.copy(folder / RANDOM, folder / "pope/coco/pope_coco_random.json")
    (told,) = check(folder).notes
    assert told.startswith("pope/coco/pope_coco_random.json is read by no benchmark")


def test_a_known_file_under_a_wrong_name_is_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if these rows were the published `popular`."""
    sha256 = examine(folder / RANDOM, "").sha256
    known = KnownFile(
        "pope", "coco popular; LF line ends", 4, sha256, "somebody/POPE 1234567 a.json"
    )
    monkeypatch.setattr("cdkit.evals.data.files_check.known_files", lambda: {sha256: known})
    report = check(folder)
    told = "coco popular; LF line ends, 4 rows (somebody/POPE): give it its own name"
    assert [told in p.problems[0] if p.problems else None for p in report.parts[:3]] == [
        True,
        None,
        True,
    ]
    assert report.parts[1].files[0].known == known
    assert not any("no known version" in note for note in report.parts[1].notes)


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match=r"no benchmark is in .*: looked for pope/.*mme/TASK.txt"):
        check(tmp_path)
    with pytest.raises(CdkitError, match="nowhere is no folder"):
        check(tmp_path / "nowhere")


def test_a_file_that_may_not_be_read_is_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, name: str) -> FileFound:
        if path.name == "existence.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return examine(path, name)

    monkeypatch.setattr("cdkit.evals.data.check.examine", closed)
    report = check(folder)
    assert ["existence.txt" in problem for problem in problems(report)] == [True]


def write_release(folder: Path) -> None:
    """AMBER's generative part, HallusionBench and ScienceQA, each with its images."""
    write_amber_generative(folder / "amber" / "data")
    write_images(folder / "amber" / "image", tuple(f"AMBER_{i}.jpg" for i in (1, 2, 3)))
    write_hallusionbench(folder / "hallusionbench")
    for part, numbers in (("VD/illusion", (0, 1, 2)), ("VS/chart", (1, 2))):
        names = tuple(f"0_{number}.png" for number in numbers)
        write_images(folder / "hallusionbench" / "hallusion_bench" / part, names)
    write_scienceqa(folder / "scienceqa")
    for name in ("5", "7", "9", "12"):
        write_images(folder / "scienceqa" / "images" / "test" / name, ("image.png",))


def test_benchmarks_of_todays_papers(tmp_path: Path) -> None:
    write_release(tmp_path)
    report = check(tmp_path, decode=True)
    assert report.whole, problems(report)
    found = {part.name: (part.questions, dict(part.labels)) for part in report.parts}
    assert found == {
        "amber_generative": (3, {}),
        "hallusionbench": (8, {"yes": 3, "no": 5}),
        "scienceqa": (4, {"D": 1, "C": 1, "B": 1, "A": 1}),
    }
    assert list(report.absent) == ["pope", "chair", "mme", "amber"]
    unknown = [note for note in notes(report) if "is of no known version" in note]
    assert len(unknown) == 7  # four of AMBER, one of HallusionBench, two of ScienceQA


def test_files_of_one_release_belong_to_both_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release(tmp_path)
    path = tmp_path / "amber/data/annotations.json"
    known = KnownFile("amber", "annotations", 3, examine(path, "").sha256, "a b c")
    files = {known.sha256: known}
    monkeypatch.setattr("cdkit.evals.data.files_check.known_files", lambda: files)
    report = check(tmp_path)
    assert report.whole, problems(report)
    found = {f.path: f.known for part in report.parts for f in part.files}
    assert found["amber/data/annotations.json"] == known


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ("amber/data/relation.json", "amber_generative in .* not whole: it lacks amber/relation"),
        ("scienceqa/pid_splits.json", "scienceqa in .* not whole: it lacks scienceqa/pid_splits"),
        ("hallusionbench/hallusion_bench/VD/illusion/0_1.png", "1 of 5 images in .* are missing"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_a_problem(tmp_path: Path, gone: str, problem: str) -> None:
    write_release(tmp_path)
    (tmp_path / gone).unlink()
    report = check(tmp_path)
    assert [bool(re.search(problem, text)) for text in problems(report)] == [True]


def test_the_catalogue_is_in_order() -> None:
    files = known_files()
    for sha256, known in files.items():
        assert len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        assert known.rows > 0 and len(known.source.split()) >= 3
        assert known.benchmark in ("pope", "chair", "mme", "amber", "hallusionbench", "scienceqa")
    named = [known.what.split(";")[0] for known in files.values()]
    assert set(TASKS) <= set(named)
    photos, splits = ("coco", "aokvqa", "gqa"), ("random", "popular", "adversarial")
    assert {f"{p} {s}" for p in photos for s in splits} <= set(named)
    rows_of_random = {k.rows for k in files.values() if k.what.startswith("coco random")}
    assert rows_of_random == {2910, 3000}  # both circulate
    assert json.dumps(str(next(iter(files.values())))).count("rows") == 1

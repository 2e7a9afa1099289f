"""The layout of a data folder: what is found where, and what is said where it is not."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evals.data_folder import IMAGES, pope_rows, write_folder, write_images, write_lines

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.data_folders import PHOTOS
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.data import layout
from cdkit.evals.data.check import check
from cdkit.evals.data.layout import parts_in
from cdkit.evals.microworld import write_benchmarks
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def refused(folder: Path, bench: str = "pope", **asked: Any) -> str:
    with pytest.raises(CdkitError) as error:
        parts_in(bench, folder, **asked)
    return str(error.value)


def test_every_part_of_pope(folder: Path) -> None:
    write_lines(folder / "pope/aokvqa/aokvqa_pope_seem_random.json", pope_rows())
    write_lines(folder / "pope/gqa/gqa_pope_popular.json", pope_rows(("7.jpg",)))
    parts = parts_in("pope", folder)
    assert {name: part.images.relative_to(folder).as_posix() for name, part in parts.items()} == {
        "pope_coco_random": "coco/val2014",
        "pope_coco_popular": "coco/val2014",
        "pope_coco_adversarial": "coco/val2014",
        "pope_aokvqa_random": "coco/val2014",
        "pope_gqa_popular": "gqa/images",
    }
    assert all(name == part.name for name, part in parts.items())
    part = parts["pope_gqa_popular"]
    assert isinstance(part.benchmark, POPE)
    assert part.benchmark.path == folder / "pope/gqa/gqa_pope_popular.json"


@pytest.mark.parametrize(
    "name",
    [
        "coco_pope_random.json",
        "pope/coco_pope_random.json",
        "pope/coco_pope_random.jsonl",
        "pope/output/coco/coco_pope_random.json",  # a clone of POPE's repository
        "pope/output/seem/gqa/gqa_pope_seem_random.json",
        "pope/aokvqa/aokvqa_pope_random.json",
    ],
)
def test_names_in_which_popes_files_circulate(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / name, pope_rows())
    photos = Path(name).name.split("_")[0]
    assert list(parts_in("pope", tmp_path)) == [f"pope_{photos}_random"]


def test_a_json_list_is_read_as_well(tmp_path: Path) -> None:
    """So POPE's repository has the questions about A-OKVQA and GQA; one repeats an id here."""
    path = tmp_path / "pope/gqa/gqa_pope_seem_random.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(pope_rows(), indent=4))
    (part,) = parts_in("pope", tmp_path).values()
    assert [s.id for s in part.benchmark.samples()] == ["1", "2", "3", "4"]
    path.write_text(json.dumps([*pope_rows(), pope_rows()[1]]))
    assert re.search(r"random.json: \[4\] has the question_id 2 again", refused(tmp_path))


def test_chair_may_have_several_annotation_files(folder: Path) -> None:
    names = ("instances", "captions")
    several = {n: [str(folder / f"coco/annotations/{n}_val2014.json")] for n in names}
    (part,) = parts_in("chair", folder, options=several).values()
    assert len(part.benchmark.samples()) == 2


def test_two_files_of_one_split_are_refused(folder: Path) -> None:
    write_lines(folder / "pope/coco_pope_popular.json", pope_rows())
    message = refused(folder)
    assert "pope_coco_popular is there more than once (" in message
    assert "pope/coco_pope_popular.json, " in message and message.endswith("): keep one")


def test_only_and_options(folder: Path) -> None:
    options = {"parsers": ["reference"], "max_new_tokens": 3}
    parts = parts_in("pope", folder, only=["pope_coco_popular"], options=options)
    (part,) = parts.values()
    assert isinstance(part.benchmark, POPE)
    assert (part.benchmark.parsers, part.benchmark.max_new_tokens) == (("reference",), 3)


def test_only_the_parts_asked_for_are_read(folder: Path) -> None:
    (folder / "pope/coco/coco_pope_random.json").write_text("broken")
    assert list(parts_in("pope", folder, only=["pope_coco_popular"]))
    assert "coco_pope_random.json:1 is not valid JSON" in refused(folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"only": ["pope_coco_rando"]}, "Did you mean 'pope_coco_random'"),
        ({"options": {"parser": ["strict"]}}, "pope_coco_random.*'parser'.*parsers"),
        ({"options": {"parsers": "strict"}}, "parsers must be a list, got 'strict'"),
        ({"options": {"max_new_tokens": 0}}, "max_new_tokens is 0: an answer needs 1 or more"),
        ({"options": {"path": "x.json"}}, "'path' is no option of pope in a data folder"),
    ],
)
def test_wrong_options_are_refused(folder: Path, asked: dict[str, Any], message: str) -> None:
    assert re.search(message, refused(folder, **asked))


def test_chair_from_coco(folder: Path) -> None:
    (part,) = parts_in("chair", folder, options={"max_new_tokens": 64}).values()
    assert part.name == "chair" and part.images == folder / "coco/val2014"
    assert [s.image for s in part.benchmark.samples()] == list(IMAGES)
    assert part.benchmark.max_new_tokens == 64


def test_chair_with_a_list_and_gzipped_annotations(folder: Path) -> None:
    (folder / "chair/images.txt").write_text(f"{IMAGES[1]}\n")
    path = folder / "coco/annotations/instances_val2014.json"
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    (part,) = parts_in("chair", folder).values()
    assert [s.image for s in part.benchmark.samples()] == [IMAGES[1]]


def test_a_given_ground_truth_needs_no_annotations(folder: Path) -> None:
    shutil.rmtree(folder / "coco/annotations")
    (folder / "chair/ground_truth.json").write_text('{"1": ["dog"]}')
    (part,) = parts_in("chair", folder).values()
    assert [s.image for s in part.benchmark.samples()] == [IMAGES[0]]


def test_a_chair_that_is_not_whole_is_told(folder: Path) -> None:
    (folder / "coco/annotations/captions_val2014.json").unlink()
    assert "it lacks coco/annotations/captions_val2014.json" in refused(folder, "chair")
    for path in ("chair/synonyms.txt", "chair"):
        (folder / path).unlink() if (folder / path).is_file() else (folder / path).rmdir()
    assert refused(folder, "chair").startswith("there is no chair in ")  # POPE is built of them


def test_mme(folder: Path) -> None:
    (part,) = parts_in("mme", folder).values()
    assert len(part.benchmark.samples()) == 2
    assert all(s.image_in(part.images) for s in part.benchmark.samples())


def test_mme_as_text_files_with_images_beside_them(folder: Path) -> None:
    for place in ("images/existence", "images"):
        (folder / "mme" / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "mme/0001.png", folder / "mme" / place)
        (part,) = parts_in("mme", folder).values()
        assert part.images == folder / "mme/images"
        assert part.benchmark.samples()[0].image == "existence/0001.png"
    shutil.rmtree(folder / "mme/images/existence")
    (part,) = parts_in("mme", folder).values()
    assert part.benchmark.samples()[0].image == "0001.png"


@pytest.mark.parametrize(
    "place", ["mme", "mme/MME_Benchmark", "mme/MME_Benchmark_release_version/MME_Benchmark"]
)
def test_mme_as_released(tmp_path: Path, place: str) -> None:
    """Two shapes of a task: all in one folder, or images and questions apart."""
    for task, pictures, asked in (
        ("existence", "", ""),
        ("scene", "images", "questions_answers_YN"),
    ):
        write_images(tmp_path / place / task / pictures, ("7.jpg",))
        questions = tmp_path / place / task / asked / "7.txt"
        questions.parent.mkdir(exist_ok=True)
        questions.write_text("A dog?\tYes\nA cat?\tNo\n")
    (part,) = parts_in("mme", tmp_path).values()
    samples = part.benchmark.samples()
    assert [s.image for s in samples[::2]] == [
        "existence/7.jpg",
        "scene/images/7.jpg",
    ]
    assert all(s.image_in(part.images) for s in samples)


def write_amber(folder: Path, *, nested: bool) -> None:
    queries = folder / ("amber/data/query" if nested else "amber") / "query_discriminative.json"
    truth = folder / ("amber/data" if nested else "amber") / "annotations.json"
    queries.parent.mkdir(parents=True)
    asked = [{"id": 1005 + i, "image": "AMBER_1.jpg", "query": f"Is it {i}?"} for i in range(2)]
    queries.write_text(json.dumps(asked))
    kind = "discriminative-hallucination"
    answers = [{"id": 1005 + i, "type": kind, "truth": ("yes", "no")[i]} for i in range(2)]
    truth.write_text(json.dumps(answers))
    write_images(folder / "amber/image", ("AMBER_1.jpg",))


@pytest.mark.parametrize("nested", [True, False])
def test_amber(tmp_path: Path, nested: bool) -> None:
    write_amber(tmp_path, nested=nested)
    (part,) = parts_in("amber", tmp_path).values()
    assert [(s.target or "").lower() for s in part.benchmark.samples()] == ["yes", "no"]
    assert part.benchmark.samples()[0].image_in(part.images)
    next(tmp_path.rglob("annotations.json")).unlink()
    assert "it lacks amber/annotations.json" in refused(tmp_path, "amber")


def test_chair_brings_its_synonyms(folder: Path) -> None:
    shutil.rmtree(folder / "chair")
    (part,) = parts_in("chair", folder).values()
    assert len(part.benchmark.samples()) == 2


def test_what_is_not_there_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert f"there is no pope in {tmp_path}: looked for pope/" in message
    assert "_pope_{random,popular,adversarial}.json" in message
    assert "docs/data.md says where to get the files and how to lay them out" in message
    assert f"`cdkit data check {tmp_path}` what is there" in message
    assert "nowhere is no folder: give the one that holds your data" in refused(Path("nowhere"))


def test_an_unknown_benchmark_is_told() -> None:
    assert "Did you mean 'pope'" in refused(Path(), "popee")


def test_a_benchmark_without_a_layout_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MME, "layout", classmethod(lambda cls: None))
    told = refused(Path(), "mme")
    assert "mme has no layout in a data folder (these have: pope, chair, amber" in told
    assert "opope has no layout in a data folder" in refused(Path(), "opope")


def test_a_benchmark_of_one_s_own_lies_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layout is a method of its class; no list here knows it."""

    def find(folder: Path) -> Iterator[LocatedPart]:
        for path in folder.glob("mine/*.json"):
            yield LocatedPart(f"mine_{path.stem}", "mine", {"path": path}, folder / "photos")

    @dataclass(frozen=True)
    class Mine(Benchmark):
        path: Path
        max_new_tokens: int = 4

        def samples(self) -> tuple[Sample, ...]:
            return POPE(self.path).samples()

        def count(self, answers: Sequence[Answer]) -> Tally:
            return POPE(self.path).count(answers)

        def sources(self) -> Mapping[str, str]:
            return POPE(self.path).sources()

        @classmethod
        def layout(cls) -> FolderLayout:
            return FolderLayout(("mine/*.json",), find, only_part="path")

    BENCHMARKS.load()
    monkeypatch.setitem(BENCHMARKS._classes, "mine", Mine)
    assert "there is no mine in" in refused(tmp_path, "mine")
    (tmp_path / "mine").mkdir()
    row = {"question_id": 1, "image": "a.jpg", "text": "is there a cat ?", "label": "yes"}
    (tmp_path / "mine" / "first.json").write_text(json.dumps(row), encoding="utf-8")
    (part,) = parts_in("mine", tmp_path).values()
    assert part.name == "mine_first" and isinstance(part.benchmark, Mine)
    assert "mine" in layout.layouts() and "mine" not in check(tmp_path).absent


def test_the_folder_of_the_micro_world(tmp_path: Path) -> None:
    files = write_benchmarks(tmp_path, images=4, exam_images=2)
    pope = parts_in("pope", tmp_path)
    assert list(pope) == [f"pope_micro_{split}" for split in files.pope]
    parts = {**pope, **parts_in("chair", tmp_path), **parts_in("mme", tmp_path)}
    for part in parts.values():
        assert all(s.image_in(part.images).is_file() for s in part.benchmark.samples())
    chair = parts["chair"].benchmark
    assert isinstance(chair, CHAIR) and len(chair.samples()) == 4
    assert chair.prompt == files.caption_prompt


def test_a_sample_finds_its_image_in_its_folder_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", ("a.jpg",))
    write_images(tmp_path, ("b.jpg",))
    (tmp_path / "photos/b.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    good, bad = (Sample("1", name, "q", group=name) for name in ("a.jpg", "b.jpg"))
    assert good.image_in(tmp_path / "link") == tmp_path / "link/a.jpg"
    with pytest.raises(CdkitError, match=r"b.jpg, which is a link out of its folder: put the file"):
        bad.image_in(tmp_path / "photos")


def test_every_layout_is_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert set(layout.layouts()) <= set(BENCHMARKS)
    for place in (*PHOTOS.values(), "synonyms.txt", "existence.txt", "built_from.json"):
        assert all(part in page for part in place.split("/")), place

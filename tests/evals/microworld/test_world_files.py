import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.microworld import WORLD, BenchmarkFiles, write_benchmarks
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    folder = tmp_path_factory.mktemp("bench")
    return write_benchmarks(folder, images=20, exam_images=12, seed=5)


def truth(benchmark: Benchmark) -> dict[str, Answer]:
    return {s.id: Answer(str(s.target)) for s in benchmark.samples()}


def test_pope_files_are_read_by_the_real_loader(files: BenchmarkFiles) -> None:
    for path in files.pope.values():
        pope = POPE(path)
        assert len(pope.samples()) == 20 * 6
        assert all((files.images / sample.image).is_file() for sample in pope.samples())
        assert pope.score(truth(pope))["accuracy"] == 1


def test_a_pope_row_has_the_published_fields(files: BenchmarkFiles) -> None:
    row = json.loads(files.pope["popular"].read_text().splitlines()[1])
    assert list(row) == ["question_id", "image", "text", "label"]
    assert (row["question_id"], row["label"]) == (2, "no")


def test_mme_files_are_read_by_the_real_loader(files: BenchmarkFiles) -> None:
    mme = MME(files.mme)
    assert len(mme.samples()) == 4 * 12 * 2
    assert all((files.images / sample.image).is_file() for sample in mme.samples())
    assert mme.score(truth(mme))["hallucination"] == 800


def test_mme_asks_each_image_twice_and_the_answers_differ(files: BenchmarkFiles) -> None:
    for path in files.mme.iterdir():
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        for yes, no in zip(rows[::2], rows[1::2], strict=True):
            assert yes[0] == no[0] and yes[1] != no[1]
            assert (yes[2], no[2]) == ("Yes", "No")


def test_the_asked_number_tells_nothing_about_the_answer(files: BenchmarkFiles) -> None:
    rows = [line.split("\t") for line in (files.mme / "count.txt").read_text().splitlines()]
    for word in ("only one", "two", "three"):
        answers = [truth for _, question, truth in rows if word in question]
        assert answers.count("Yes") == answers.count("No") == 4


def test_chair_files_are_read_by_the_real_loader(files: BenchmarkFiles) -> None:
    chair = CHAIR(
        synonyms=files.synonyms,
        instances=files.annotations,
        captions=files.captions,
        images=files.caption_images,
        prompt=files.caption_prompt,
    )
    assert len(chair.samples()) == 20
    references: dict[str, str] = {}
    for row in json.loads(files.captions.read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), row["caption"])
    told = {s.id: Answer(references[s.id]) for s in chair.samples()}
    score = chair.score(told)
    assert score["chair_s"] == score["chair_i"] == 0
    assert score["recall"] > 0.8
    wrong = {name: Answer("A photo of " + ", ".join(WORLD.categories) + ".") for name in told}
    assert chair.score(wrong)["chair_s"] == 1


def test_annotations_hold_what_coco_holds(files: BenchmarkFiles) -> None:
    coco = json.loads(files.annotations.read_text())
    captions = json.loads(files.captions.read_text())
    ids = {image["id"] for image in coco["images"]}
    assert {row["image_id"] for row in coco["annotations"]} == ids
    assert [row["image_id"] for row in captions["annotations"]] == [
        image["id"] for image in coco["images"] for _ in range(5)
    ]
    assert {row["category_id"] for row in coco["annotations"]} <= {
        kind["id"] for kind in coco["categories"]
    }
    for row in coco["annotations"]:
        left, top, width, height = row["bbox"]
        assert 0 <= left <= 64 - width and 0 <= top <= 64 - height


def test_placement_names_the_image_tokens_of_each_object(files: BenchmarkFiles) -> None:
    coco = json.loads(files.annotations.read_text())
    names = {kind["id"]: kind["name"] for kind in coco["categories"]}
    boxes: dict[str, list[tuple[str, int, int]]] = {}
    for row in coco["annotations"]:
        left, top, width, height = row["bbox"]
        middle = (left + width // 2, top + height // 2)
        boxes.setdefault(f"{row['image_id']:012d}.png", []).append(
            (names[row["category_id"]], middle[1] // 8 * 8 + middle[0] // 8, row["area"])
        )
    placement = json.loads(files.placement.read_text())
    assert placement.keys() == boxes.keys()
    for image, entry in placement.items():
        assert entry["image_tokens"] == 64
        for thing, (name, token, _) in zip(entry["objects"], boxes[image], strict=True):
            assert thing["category"] == name
            assert token in thing["tokens"] and thing["token"] == thing["tokens"][0]
            assert thing["token"] == thing["row"] * 16 + thing["column"] * 2


def test_the_same_arguments_write_the_same_files(files: BenchmarkFiles, tmp_path: Path) -> None:
    again = write_benchmarks(tmp_path, images=20, exam_images=12, seed=5)
    root = files.images.parent
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    for name in names:
        assert (root / name).read_bytes() == (tmp_path / name).read_bytes()
    other = write_benchmarks(tmp_path / "other", images=20, exam_images=12, seed=6)
    assert other.annotations.read_bytes() != again.annotations.read_bytes()


def test_images_are_plain_rgb_files(files: BenchmarkFiles) -> None:
    for name in files.caption_images.read_text().splitlines():
        with Image.open(files.images / name) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert np.asarray(image).std() > 0


def test_no_images_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match="images=0 and exam_images=60: both must be 1 or more"):
        write_benchmarks(tmp_path, images=0)

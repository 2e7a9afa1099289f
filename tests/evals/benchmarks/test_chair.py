"""CHAIR: the merging rules one by one, ratios counted by hand, and each fault of a file."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import read_answers, read_source
from cdkit.evals.benchmarks.chair import CHAIR, parse
from cdkit.evals.benchmarks.object_words import SYNONYMS as SHIPPED
from cdkit.evals.benchmarks.object_words import read_synonyms
from cdkit.interfaces.sample import Answer

SYNONYMS = """person, man, woman, child, baby, adult, passenger, rider
airplane, plane, jet,  air plane
train
bear, panda
dog, puppy, doggy
tie, bow, bow tie
chair, seat, stool
toilet
hot dog
traffic light, street light
skis, ski
bus
knife
sheep, lamb
wine glass
tennis racket, racket
scissors
bench
"""
NODES = [line.split(",")[0] for line in SYNONYMS.splitlines()]


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return path


@pytest.mark.parametrize(
    ("caption", "nodes"),
    [
        ("Two men and a WOMAN.", ["person", "person"]),
        ("a hot dog near a dog", ["hot dog", "dog"]),
        ("hot dogs, dogs", ["hot dog", "dog"]),
        ("so hot. Dogs pant", ["dog"]),  # no pair over a full stop
        ("a baby bear with an adult bear", ["bear", "bear"]),
        ("a baby on a bear", ["person", "bear"]),
        ("a baby animal", []),
        ("a passenger jet beside a passenger train", ["airplane", "train"]),
        ("a passenger of a train", ["person", "train"]),
        ("he wears a bow tie", ["tie"]),
        ("a toilet seat", ["toilet"]),
        ("a toilet and a seat and a stool", ["toilet", "chair"]),  # "seat" is dropped, once asked
        ("a seat", ["chair"]),
        ("a train track", []),
        ("train tracks and a train", ["train"]),
        ("a baby baby bear", ["person", "bear"]),  # greedy from the left, one pair a word
        ("street lights", ["traffic light"]),
        ("she skis on skis", ["skis", "skis"]),
        ("blue skies", []),  # -es is no plural after "i"
        ("buses, benches, knives, lambs", ["bus", "bench", "knife", "sheep"]),
        ("two wine glasses", ["wine glass"]),
        ("doggies with tennis rackets and scissors", ["dog", "tennis racket", "scissors"]),
        ("a train-like thing", []),  # a word with hyphens is one word
        ("the man's dog", ["person", "dog"]),
        ("tied hair", []),  # verb forms are the lineage's, not this scorer's
        ("", []),
    ],
)
def test_the_rules_of_mentions(synonyms: Path, caption: str, nodes: list[str]) -> None:
    assert list(parse(caption, read_synonyms(read_source(synonyms)), "simple").nodes) == nodes


@given(st.lists(st.sampled_from([*NODES, "a", "red", "on"]), max_size=12))
def test_separated_node_words_are_each_one_mention(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "synonyms.txt"
    path.write_text(SYNONYMS)
    said = parse(", ".join(words), read_synonyms(read_source(path)), "simple")
    assert list(said.nodes) == [word for word in words if word in NODES]


def truth_file(tmp_path: Path, truth: Mapping[str, object]) -> Path:
    path = tmp_path / "truth.json.gz"
    path.write_bytes(gzip.compress(json.dumps(truth).encode()))
    return path


def captions(*texts: str, truncated: bool = False) -> dict[str, Answer]:
    return {str(i): Answer(text, truncated=truncated) for i, text in enumerate(texts, start=1)}


def test_scores_by_hand(tmp_path: Path, synonyms: Path) -> None:
    truth = {"1": ["dog", "bus"], "2": ["person"], "3": []}
    benchmark = CHAIR(synonyms, ground_truth=truth_file(tmp_path, truth))
    score = benchmark.score(
        captions("a dog, a dog and a bench", "a man", "a stool on a stool", truncated=True)
    )
    precision, recall = 3 / 6, 2 / 3  # repeats count: six mentions, three of them wrong
    expected = {
        "chair_s": 2 / 3,
        "chair_i": 3 / 6,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "mean_length": (7 + 2 + 5) / 3,
        "distinct_1": (4 + 2 + 3) / (7 + 2 + 5),  # a dog and bench; a man; a stool on
        "distinct_2": (5 + 1 + 3) / (6 + 1 + 4),  # "a dog" and "a stool" stand there twice
        "repetition_4": 0,
        "unknown": 0,
        "truncated": 3,
    }
    assert score == pytest.approx(expected)
    assert benchmark.wrong_objects("3", "a stool on a bus") == ("chair", "bus")
    with pytest.raises(CdkitError, match="no image has the id '4'"):
        benchmark.wrong_objects("4", "a stool")


def test_a_part_of_the_images_is_scored_by_itself(tmp_path: Path, synonyms: Path) -> None:
    truth = {"1": ["dog"], "2": ["person"], "3": ["bus"]}
    benchmark = CHAIR(synonyms, ground_truth=truth_file(tmp_path, truth))
    some = {"3": Answer("a bus and a dog"), "1": Answer("a dog")}
    tally = benchmark.tally_of(some)
    assert [sample.id for sample in tally.samples] == ["1", "3"]
    small = {name: truth[name] for name in some}
    alone = CHAIR(synonyms, ground_truth=truth_file(tmp_path, small))
    assert tally.values() == alone.score(some)
    with pytest.raises(CdkitError, match=r"no image has the id '4' in .*truth.json.gz"):
        benchmark.tally_of({"4": Answer("")})


def test_ratios_over_nothing_are_zero(tmp_path: Path, synonyms: Path) -> None:
    benchmark = CHAIR(synonyms, ground_truth=truth_file(tmp_path, {"1": []}))
    assert set(benchmark.score(captions("")).values()) == {0.0}


@settings(max_examples=30)
@given(st.data())
def test_weights_are_repeated_images(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("chair")
    (folder / "synonyms.txt").write_text(SYNONYMS)
    some = st.lists(st.sampled_from(NODES), max_size=4)
    rows = [(data.draw(some), ", ".join(data.draw(some)), data.draw(st.integers(0, 3)))]
    rows += [(data.draw(some), ", ".join(data.draw(some)), 1) for _ in range(3)]

    def build(rows: list[tuple[list[str], str, int]]) -> CHAIR:
        truth = {str(i): truth for i, (truth, _, _) in enumerate(rows, start=1)}
        return CHAIR(folder / "synonyms.txt", ground_truth=truth_file(folder, truth))

    weights = np.array([[times for _, _, times in rows]], dtype=float)
    weighed = build(rows).tally(captions(*(text for _, text, _ in rows))).at(weights)
    repeated = [row for row in rows for _ in range(row[2])]
    expected = build(repeated).score(captions(*(text for _, text, _ in repeated)))
    assert {name: found[0] for name, found in weighed.items()} == pytest.approx(expected)


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Path]:
    files: dict[str, object] = {
        "instances": {
            "images": [
                {"id": 12, "file_name": "COCO_val2014_000000000012.jpg"},
                {"id": 5, "file_name": "five.png"},
            ],
            "categories": [{"id": 1, "name": "dog"}, {"id": 9, "name": "bus"}],
            "annotations": [
                {"image_id": 12, "category_id": 1, "bbox": [0, 0, 1, 1]},
                {"image_id": 12, "category_id": 1},
            ],
        },
        "captions": {
            "annotations": [
                {"image_id": 12, "caption": "A man with a puppy"},
                {"image_id": 12, "caption": "Somebody on a seat."},
                {"image_id": 5, "caption": "Nothing to see"},
            ]
        },
    }
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return {name: tmp_path / f"{name}.json" for name in files}


def annotated(
    synonyms: Path,
    coco: Mapping[str, Path],
    images: Path | None = None,
    ground_truth: Path | None = None,
) -> CHAIR:
    return CHAIR(
        synonyms,
        instances=coco["instances"],
        captions=coco["captions"],
        ground_truth=ground_truth,
        images=images,
        prompt="Describe it.",
    )


def test_the_truth_is_annotations_and_reference_captions(
    synonyms: Path, coco: dict[str, Path]
) -> None:
    benchmark = annotated(synonyms, coco)
    assert [(s.id, s.image) for s in benchmark.samples()] == [
        ("12", "COCO_val2014_000000000012.jpg"),
        ("5", "five.png"),
    ]
    assert benchmark.wrong_objects("12", "dog, man, chair, bus") == ("bus",)
    assert benchmark.wrong_objects("5", "dog, man") == ("dog", "person")
    assert set(benchmark.sources()) == {str(path) for path in (synonyms, *coco.values())}
    assert benchmark.versions() == {"simple": 2}


def test_a_list_decides_the_images_and_their_order(
    tmp_path: Path, synonyms: Path, coco: dict[str, Path]
) -> None:
    images = tmp_path / "list.txt"
    images.write_bytes(b"\xef\xbb\xbffive.png\r\nval2014/COCO_val2014_000000000012.jpg\r\n")
    benchmark = annotated(synonyms, coco, images=images)
    assert [(s.id, s.image, s.prompt) for s in benchmark.samples()] == [
        ("5", "five.png", "Describe it."),
        ("12", "val2014/COCO_val2014_000000000012.jpg", "Describe it."),
    ]
    truth = truth_file(tmp_path, {"12": ["dog"]})
    images.write_text("12.png\n")
    assert CHAIR(synonyms, ground_truth=truth, images=images).samples()[0].id == "12"
    named = CHAIR(synonyms, ground_truth=truth).samples()[0].image
    assert named == "COCO_val2014_000000000012.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("five.png\n\n7.png", r"list.txt:3: no image has the id 7 in .*instances.json"),
        ("five.png\nfive.png", r"list.txt:2: the image 5 is there a second time: keep one"),
        ("cat.png", r"list.txt:1: 'cat.png' is not in the instances file and holds no image id"),
        ("../5.png", r"list.txt:1: the image name '../5.png' is not inside the image folder"),
        ("", r"list.txt is empty"),
    ],
)
def test_a_faulty_list(
    tmp_path: Path, synonyms: Path, coco: dict[str, Path], text: str, message: str
) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(CdkitError, match=message):
        annotated(synonyms, coco, images=tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("instances", {"images": None}, r"instances.json has no list 'images'"),
        ("instances", {"images": ["x"]}, r"instances.json: images\[0\] is no object"),
        ("instances", {"categories": []}, r"annotations\[0\] is of image 12 and category 1, and"),
        ("instances", {"categories": [{"id": 1, "name": "cow"}]}, r"'cow', which stands in no"),
        ("instances", {"categories": [{"id": 1}]}, r"categories\[0\] has None as 'name'"),
        ("instances", {"images": [{"id": 1.5, "file_name": "a"}]}, r"images\[0\] has 1.5 as 'id'"),
        (
            "instances",
            {"images": [{"id": 1, "file_name": "a"}] * 2},
            r"images\[1\] is there a second time",
        ),
        ("captions", {"annotations": []}, r"captions.json has no caption of image 12"),
        ("captions", {"annotations": [{"image_id": 12}]}, r"has None as 'caption'"),
    ],
)
def test_faulty_annotations(
    synonyms: Path, coco: dict[str, Path], file: str, change: dict[str, object], message: str
) -> None:
    value = json.loads(coco[file].read_text())
    if file == "instances" and "categories" in change and change["categories"]:
        value["annotations"] = value["annotations"][:1]
    coco[file].write_text(json.dumps(value | change))
    with pytest.raises(CdkitError, match=message):
        annotated(synonyms, coco)


def test_faulty_ground_truth(tmp_path: Path, synonyms: Path) -> None:
    for truth, message in {
        '["dog"]': r"holds no {image id: \[objects\]}",
        "{}": r"holds no {image id: \[objects\]}",
        '{"1": "dog"}': r"image 1 has 'dog': it needs a list of names",
        '{"1": ["cow"]}': r"'cow', which stands in no line of the synonyms file: add it",
        '{"1": ["dog"]': r"truth.json is not valid JSON",
    }.items():
        (tmp_path / "truth.json").write_text(truth)
        with pytest.raises(CdkitError, match=message):
            CHAIR(synonyms, ground_truth=tmp_path / "truth.json")
    (tmp_path / "truth.json.gz").write_bytes(b"no gzip")
    with pytest.raises(CdkitError, match="cannot be read"):
        CHAIR(synonyms, ground_truth=tmp_path / "truth.json.gz")


def test_faulty_settings(tmp_path: Path, synonyms: Path, coco: dict[str, Path]) -> None:
    truth = truth_file(tmp_path, {"1": ["dog"]})
    with pytest.raises(CdkitError, match="give both the instances and the captions file"):
        CHAIR(synonyms, instances=coco["instances"])
    with pytest.raises(CdkitError, match="or a ground truth file alone"):
        annotated(synonyms, coco, ground_truth=truth)
    with pytest.raises(CdkitError, match="no scorer of captions is called 'simpel'"):
        CHAIR(synonyms, ground_truth=truth, scorer="simpel")
    with pytest.raises(CdkitError, match="names no object: a line is OBJECT, SYNONYM"):
        (tmp_path / "none.txt").write_text("# a comment\n")
        CHAIR(tmp_path / "none.txt", ground_truth=truth)
    synonyms.write_text("dog\n, cat\n", encoding="utf-8")
    with pytest.raises(CdkitError, match=r"synonyms.txt:2 names no object"):
        CHAIR(synonyms, ground_truth=truth)


def test_captions_are_read_from_the_files_that_circulate(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [
        {"image_id": 1, "caption": ""},
        {"question_id": "q", "text": "Yes", "yes_score": 2},
        {"id": "x", "text": "No", "truncated": True, "tokens": 3, "yes_score": None},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_answers(path) == {
        "1": Answer(""),
        "q": Answer("Yes", yes_score=2.0),
        "x": Answer("No", truncated=True, tokens=3),
    }
    for row, message in (
        ({"image_id": 2, "caption": None}, r"jsonl:2 lacks 'text'"),
        ({"caption": "a"}, r"jsonl:2 lacks 'id'"),
        (rows[0], r"jsonl:2 answers sample 1 a second time"),
        ({"id": 2, "text": "a", "tokens": "3"}, r"jsonl:2: 'yes_score' must be a number"),
        ({"id": 2, "text": "a", "yes_score": float("nan")}, r"jsonl:2: a yes score is NaN"),
    ):
        path.write_text(f"{json.dumps(rows[0])}\n{json.dumps(row)}\n")
        with pytest.raises(CdkitError, match=message):
            read_answers(path)


PLURALS = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "calf": "calves",
    "thief": "thieves",
    "person": "people",
}
NO_PLURAL = frozenset({"children", "people", "oxen", "cattle", "scissors", "skis", "luggage"})


def plural(name: str) -> str:
    """By English rules, not by those of the scorer."""
    last = name.split()[-1]
    for singular, irregular in PLURALS.items():
        if last.endswith(singular) and last not in ("doberman", "human"):
            return name.removesuffix(singular) + irregular
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if last.endswith("y") and last[-2] not in "aeou":
        return f"{name.removesuffix('y')}ies"
    return f"{name}s"


def test_every_word_is_found_in_the_plural() -> None:
    synonyms = read_synonyms(read_source(SHIPPED))
    wrong = {}
    for name, node in synonyms.node_of.items():
        if name.split()[-1] not in NO_PLURAL:
            found = parse(f"two {plural(name)} there", synonyms, "simple").nodes
            if found != parse(f"two {name} there", synonyms, "simple").nodes or not found:
                wrong[plural(name)] = found
            elif " " not in name:
                assert found == (node,), name
    assert not wrong


@pytest.mark.parametrize(
    ("words", "node"),
    [
        ("gentlemen", "person"),
        ("policemen", "person"),
        ("grandchildren", "person"),
        ("thieves", "person"),
        ("pocketknives", "knife"),
        ("busses", "bus"),
        ("the gentlemen's", "person"),
    ],
)
def test_plurals_of_compounds(words: str, node: str) -> None:
    synonyms = read_synonyms(read_source(SHIPPED))
    assert parse(words, synonyms, "simple").nodes == (node,)


def test_plurals_of_own_words(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("person, policewoman, salesperson\nleaf, bookshelf, housewife\n")
    synonyms = read_synonyms(read_source(path))
    said = "policewomen, salespeople, leaves, bookshelves, housewives, specimen, sieves"
    assert parse(said, synonyms, "simple").nodes == ("person", "person", "leaf", "leaf", "leaf")

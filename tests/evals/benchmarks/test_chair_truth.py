"""CHAIR's ground truth: several annotation files as one, read late, and a cache that never lies."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import chair_truth, object_words
from cdkit.evals.benchmarks.benchmark_files import read_source
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.chair_truth import coco_truth
from cdkit.evals.benchmarks.object_words import SYNONYMS, read_synonyms

SHIPPED = read_synonyms(read_source(SYNONYMS))
KINDS = ("dog", "bus", "person")
Content = Mapping[int, tuple[Sequence[str], Sequence[str]]]
"""The categories and the captions of each image."""


def write(folder: Path, name: str, content: Content) -> tuple[Path, Path]:
    instances = {
        "images": [{"id": i, "file_name": f"{name}_{i}.jpg"} for i in content],
        "categories": [{"id": n, "name": kind} for n, kind in enumerate(KINDS)],
        "annotations": [
            {"image_id": i, "category_id": KINDS.index(kind)}
            for i, (kinds, _) in content.items()
            for kind in kinds
        ],
    }
    texts = [{"image_id": i, "caption": c} for i, (_, said) in content.items() for c in said]
    paths = folder / f"instances_{name}.json", folder / f"captions_{name}.json"
    for path, value in zip(paths, (instances, {"annotations": texts}), strict=True):
        path.write_text(json.dumps(value))
    return paths


VAL: Content = {5: (["dog"], ["A man", "a cat"]), 6: ([], ["nothing"])}
TRAIN: Content = {7: (["bus"], ["two buses"])}


@pytest.fixture
def coco(tmp_path: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    val, train = write(tmp_path, "val", VAL), write(tmp_path, "train", TRAIN)
    return (val[0], train[0]), (val[1], train[1])


def chair(coco: tuple[tuple[Path, ...], tuple[Path, ...]], cache: Path | None = None) -> CHAIR:
    return CHAIR(instances=coco[0], captions=coco[1], cache=cache)


def test_train_and_val_are_one(coco: tuple[tuple[Path, ...], tuple[Path, ...]]) -> None:
    truth = coco_truth(*coco, SHIPPED, "simple")
    assert dict(truth.objects) == {"5": {"dog", "person", "cat"}, "6": set(), "7": {"bus"}}
    assert "8" not in truth.objects and len(truth.objects) == 3
    both = chair(coco)
    assert [s.image for s in both.samples()] == ["val_5.jpg", "val_6.jpg", "train_7.jpg"]
    files = (*coco[0], *coco[1], SYNONYMS)
    assert both.sources() == {str(path): read_source(path).sha256 for path in files}


def test_what_stands_in_two_files(coco: tuple[tuple[Path, ...], tuple[Path, ...]]) -> None:
    instances, captions = coco
    with pytest.raises(CdkitError, match=r"instances_val.json has 5, which another file has too"):
        chair(((*instances, instances[0]), captions))
    with pytest.raises(CdkitError, match=r"captions_train.json has 7, which another file has too"):
        chair((instances, (*captions, captions[1])))
    with pytest.raises(CdkitError, match=r"captions_train.json has no caption of image 5: give"):
        chair((instances, captions[1:]))


def test_captions_are_read_when_they_are_asked_for(
    coco: tuple[tuple[Path, ...], tuple[Path, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ones: list[str] = []
    simple = object_words.SCORERS["simple"]

    def lemmas(caption: str, vocabulary: object_words.Vocabulary) -> list[str]:
        read_ones.append(caption)
        return simple.lemmas(caption, vocabulary)

    watched = {"simple": replace(simple, lemmas=lemmas)}
    monkeypatch.setattr(chair_truth, "SCORERS", watched)
    truth = coco_truth(*coco, SHIPPED, "simple")
    assert "two buses" not in read_ones  # the type checks of the tests look at a first image
    assert truth.objects["7"] == truth.objects["7"] == {"bus"}
    assert read_ones.count("two buses") == 1


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_cache_gives_the_same_and_spares_the_reading(
    coco: tuple[tuple[Path, ...], tuple[Path, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, first = chair(coco), chair(coco, tmp_path / "cache")
    (file,) = kept(tmp_path / "cache")
    before = file.read_bytes()
    monkeypatch.setattr(chair_truth, "coco_truth", None)  # calling it would fail
    second = chair(coco, tmp_path / "cache")
    for each in (first, second):
        assert each.samples() == plain.samples() and each.sources() == plain.sources()
        assert each.wrong_objects("5", "dog, man, cat, bus") == ("bus",)
    assert file.read_bytes() == before and json.loads(before)["key"]["scorer"] == "simple 2"


def test_the_cache_is_never_stale(
    coco: tuple[tuple[Path, ...], tuple[Path, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    chair(coco, cache)
    write(tmp_path, "val", {**VAL, 6: (["bus"], ["nothing"])})
    assert chair(coco, cache).wrong_objects("6", "a bus") == ()
    assert len(kept(cache)) == 2
    own = tmp_path / "synonyms.txt"
    own.write_text("dog\nbus, thing\nperson, man\n")
    other = CHAIR(own, instances=coco[0], captions=coco[1], cache=cache)
    assert other.wrong_objects("6", "a thing") == () and len(kept(cache)) == 3
    newer = {"simple": replace(object_words.SCORERS["simple"], version=3)}
    monkeypatch.setattr(chair_truth, "SCORERS", newer)
    chair(coco, cache)
    assert len(kept(cache)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"simple 2"', '"simple 3"'),
        lambda text: text.replace('["bus"]', '"bus"'),
        lambda text: text.replace('["bus"]', "[1]"),
        lambda text: text.replace('"objects"', '"objekte"'),
        lambda text: text.replace('"train_7.jpg": "7"', '"train_7.jpg": 7'),
    ],
)
def test_a_damaged_cache_is_made_anew(
    coco: tuple[tuple[Path, ...], tuple[Path, ...]], tmp_path: Path, damage: Callable[[str], str]
) -> None:
    chair(coco, tmp_path / "cache")
    (file,) = kept(tmp_path / "cache")
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    assert chair(coco, tmp_path / "cache").wrong_objects("7", "a bus, a dog") == ("dog",)
    assert file.read_text() == whole and kept(tmp_path / "cache") == [file]


def test_a_folder_that_cannot_be_written(
    coco: tuple[tuple[Path, ...], tuple[Path, ...]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CdkitError, match=r"cannot hold the cache .*: name a folder that can be"):
        chair(coco, tmp_path / "cache")


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 9),
        st.tuples(
            st.lists(st.sampled_from(KINDS), max_size=3),
            st.lists(st.sampled_from(["a dog", "two buses", "men", "hm"]), min_size=1, max_size=3),
        ),
        min_size=2,
    ),
    st.data(),
)
def test_how_files_are_cut_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, content: Content, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("coco")
    whole = write(folder, "all", content)
    cut = data.draw(st.integers(1, len(content) - 1))
    ids = list(content)
    parts = [
        write(folder, name, {i: content[i] for i in some})
        for name, some in (("a", ids[:cut]), ("b", ids[cut:]))
    ]
    one = coco_truth([whole[0]], [whole[1]], SHIPPED, "simple")
    two = coco_truth([p[0] for p in parts], [p[1] for p in parts], SHIPPED, "simple")
    assert dict(one.objects) == dict(two.objects)

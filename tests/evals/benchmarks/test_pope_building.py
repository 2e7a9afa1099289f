"""POPE's questions from annotations: what is asked, by each rule, against counts made anew."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import read_source
from cdkit.evals.benchmarks.coco import Instances, read_instances
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.benchmarks.pope_building import (
    PUBLISHED,
    Poll,
    Rule,
    adversarial,
    adversarial_to_all,
    build_polls,
    polls_of_instances,
    pope_rows,
    popular,
    random,
    write_polls,
)

RULES = [*PUBLISHED.values(), adversarial_to_all]

NAMES = tuple("abcdefghijkl")
contents = st.dictionaries(
    st.text("0123456789", min_size=3, max_size=5),
    st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)),
    max_size=12,
)
seeds = st.integers(0, 2**32 - 1)


@given(contents, st.sampled_from(RULES), seeds)
def test_three_there_and_three_not(found: dict[str, list[str]], rule: Rule, seed: int) -> None:
    polls = build_polls(found, NAMES, rule, seed)
    enough = [i for i, names in found.items() if 3 <= len(names) <= len(NAMES) - 3]
    assert [poll.image for poll in polls] == enough
    for poll in polls:
        assert len(set(poll.present)) == len(set(poll.absent)) == 3
        assert set(poll.present) <= set(found[poll.image])
        assert not set(poll.absent) & set(found[poll.image])


@given(contents, seeds)
def test_the_splits_ask_about_the_same_present_things(
    found: dict[str, list[str]], seed: int
) -> None:
    first, *others = [build_polls(found, NAMES, rule, seed) for rule in RULES]
    for other in others:
        assert [(p.image, p.present) for p in first] == [(p.image, p.present) for p in other]


@given(contents, seeds)
def test_popular_asks_for_the_most_frequent_absent(found: dict[str, list[str]], seed: int) -> None:
    counts = Counter(name for names in found.values() for name in names)
    for poll in build_polls(found, NAMES, popular, seed):
        rest = set(NAMES) - set(found[poll.image]) - set(poll.absent)
        assert min(counts[n] for n in poll.absent) >= max((counts[n] for n in rest), default=0)


@given(contents, seeds)
def test_adversarial_follows_each_present_thing(found: dict[str, list[str]], seed: int) -> None:
    """The published rule: the thing asked about just before decides, and nothing is taken twice."""

    def together(one: str, other: str) -> int:
        return sum(one in names and other in names for names in found.values())

    for poll in build_polls(found, NAMES, adversarial, seed):
        left = [name for name in NAMES if name not in found[poll.image]]
        for thing, absent in zip(poll.present, poll.absent, strict=True):
            most = max(together(name, thing) for name in left)
            assert absent == next(name for name in left if together(name, thing) == most)
            left.remove(absent)


@given(contents, seeds)
def test_the_worlds_adversarial_asks_for_what_comes_along(
    found: dict[str, list[str]], seed: int
) -> None:
    for poll in build_polls(found, NAMES, adversarial_to_all, seed):
        here = found[poll.image]

        def likely(name: str, here: list[str] = here) -> float:
            """Sum over the present things of P(name | thing), counted image by image."""
            total = 0.0
            for thing in here:
                having = [names for names in found.values() if thing in names]
                total += sum(name in names for names in having) / len(having)
            return total

        rest = set(NAMES) - set(here) - set(poll.absent)
        most = max((likely(n) for n in rest), default=0.0)
        assert min(map(likely, poll.absent)) >= most - 1e-9


def test_adversarial_differs_from_popular_where_company_differs() -> None:
    found = {f"k{i}": ["fork", "cup", "bowl", "pizza"] for i in range(2)}
    found |= {f"s{i}": ["car", "bus", "dog"] for i in range(9)}
    found["new"] = ["fork", "cup", "bowl"]
    names = ("fork", "cup", "bowl", "pizza", "car", "bus", "dog", "cat")
    frequent = {p.image: p.absent for p in build_polls(found, names, popular, 0)}
    assert frequent["new"] == ("car", "bus", "dog")
    for rule in (adversarial, adversarial_to_all):
        assert build_polls(found, names, rule, 0)[-1].absent[0] == "pizza"


def test_random_asks_uniformly() -> None:
    found = {str(i): ["a", "b", "c"] for i in range(3000)}
    polls = build_polls(found, NAMES, random, 1)
    counts = Counter(name for poll in polls for name in poll.absent)
    assert set(counts) == set(NAMES) - {"a", "b", "c"}
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_rows_take_turns_and_count_from_one() -> None:
    rows = pope_rows([Poll("x.png", ("a", "b", "c"), ("d", "e", "f"))])
    assert [row["question_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["label"] for row in rows] == ["yes", "no"] * 3
    assert rows[1]["text"] == "Is there a d in the image?"


def test_an_article_fits_its_noun() -> None:
    rows = pope_rows([Poll("x.png", ("umbrella", "bus"), ("orange", "hot dog"))])
    assert [row["text"] for row in rows] == [
        "Is there an umbrella in the image?",
        "Is there an orange in the image?",
        "Is there a bus in the image?",
        "Is there a hot dog in the image?",
    ]


def annotated(images: int = 40, name: str = "COCO_val2014_{:012d}.jpg") -> dict[str, object]:
    """Instances of `images` images; image i has the categories that its bits name, some twice."""
    boxes = [(i, c) for i in range(images) for c in range(9) if (i * 37 + 11) >> c & 1]
    return {
        "images": [{"id": i, "file_name": name.format(i)} for i in range(images)],
        "categories": [{"id": c + 1, "name": NAMES[c]} for c in range(9)],
        "annotations": [{"image_id": i, "category_id": c + 1} for i, c in [*boxes, *boxes[::3]]],
    }


def instances(tmp_path: Path, content: object) -> Instances:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return read_instances(read_source(path))


def test_polls_of_coco(tmp_path: Path) -> None:
    found = instances(tmp_path, annotated())
    truth = {name: found.categories[i] for name, i in found.id_of.items()}
    splits = polls_of_instances(found, images=12, seed=3)
    assert list(splits) == ["random", "popular", "adversarial"]
    for split, polls in splits.items():
        write_polls(tmp_path / split, polls)
        samples = POPE(tmp_path / split).samples()
        assert [s.id for s in samples] == [str(i) for i in range(1, 73)]
        assert Counter(s.target for s in samples) == {"yes": 36, "no": 36}
        assert set(Counter(s.image for s in samples).values()) == {6}
        for sample in samples:
            thing = sample.prompt.split()[3]
            assert (thing in truth[sample.image]) == (sample.target == "yes")


def test_frequencies_are_those_of_the_drawn_images(tmp_path: Path) -> None:
    """As in POPE's script; the counts of all images would name others here."""
    found = instances(tmp_path, annotated())
    drawn = {p.image for p in polls_of_instances(found, images=5, seed=0)["popular"]}

    def first(images: set[str]) -> list[str]:
        counts = Counter(c for name in images for c in found.categories[found.id_of[name]])
        return sorted(NAMES[:9], key=lambda name: -counts[name])

    assert first(drawn) != first(set(found.id_of))
    for poll in polls_of_instances(found, images=5, seed=0)["popular"]:
        here = found.categories[found.id_of[poll.image]]
        assert list(poll.absent) == [name for name in first(drawn) if name not in here][:3]


def test_the_seed_draws_and_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    content = annotated()
    first = polls_of_instances(instances(tmp_path, content), images=12, seed=3)
    assert first != polls_of_instances(instances(tmp_path, content), images=12, seed=4)
    for key in ("images", "annotations"):
        content[key] = list(reversed(content[key]))  # type: ignore[call-overload]
    assert first == polls_of_instances(instances(tmp_path, content), images=12, seed=3)


def test_other_numbers_of_objects(tmp_path: Path) -> None:
    splits = polls_of_instances(instances(tmp_path, annotated()), images=4, seed=0, each=2)
    assert all(len(p.present) == len(p.absent) == 2 for polls in splits.values() for p in polls)


def test_too_few_images_are_told(tmp_path: Path) -> None:
    found = instances(tmp_path, annotated(4))
    with pytest.raises(CdkitError, match="of 4 images show 3 or more of the 9 categories and lack"):
        polls_of_instances(found)
    with pytest.raises(CdkitError, match="images=0, objects=3 and seed=0: the first two must be"):
        polls_of_instances(found, images=0)


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    found = instances(tmp_path, annotated(name="../{}.jpg"))
    with pytest.raises(CdkitError, match=r"the image of id \d+: the image name .* is not inside"):
        polls_of_instances(found, images=5)

"""POPE: parsers word by word, metrics against counts by hand, and each fault of a file."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.pope import POPE, reference, vcd
from cdkit.evals.benchmarks.yes_no import strict
from cdkit.evals.statistics.ranking import image_auc, matched_right
from cdkit.evals.statistics.run_comparison import compare
from cdkit.interfaces.benchmark import BENCHMARKS
from cdkit.interfaces.sample import Answer

GOOD = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"}
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unknown")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def questions(path: Path, labels: Sequence[str], per_image: int = 2) -> POPE:
    rows = (
        {"question_id": i, "image": f"{i // per_image}.jpg", "text": "q", "label": label}
        for i, label in enumerate(labels)
    )
    return POPE(write(path, *rows))


def answers(texts: Sequence[str], scores: Sequence[float] | None = None) -> dict[str, Answer]:
    given = [None] * len(texts) if scores is None else scores
    return {str(i): Answer(t, s) for i, (t, s) in enumerate(zip(texts, given, strict=True))}


@pytest.mark.parametrize(
    ("text", "by_strict", "by_reference"),
    [
        ("Yes", "yes", "yes"),
        ("yes, there is.", "yes", "yes"),
        ("No", "no", "no"),
        ("NO!", "no", "yes"),  # the reference knows three spellings only
        ("No, there is no cat.", "no", "no"),
        ("There is not a cat.", "unknown", "no"),
        ("There isn't.", "unknown", "yes"),
        ("I see a snowboard.", "unknown", "yes"),  # "snowboard" holds a "no"
        ("Yes. No, wait.", "yes", "yes"),  # the first sentence counts
        ("\n\nYes", "yes", "yes"),
        ("**No**", "no", "yes"),
        ("yes and no", "unknown", "no"),
        ("no-one is there", "unknown", "yes"),
        ("A cat. No.", "unknown", "yes"),
        ("... yes", "yes", "yes"),
        ("", "unknown", "yes"),
    ],
)
def test_parsers(text: str, by_strict: str, by_reference: str) -> None:
    for label in ("yes", "no"):
        assert (strict(text, label), reference(text, label)) == (by_strict, by_reference)


def test_the_vcd_parser_looks_at_the_label() -> None:
    text = "Yes, a person on a snowboard"
    assert (vcd(text, "yes"), vcd(text, "no")) == ("yes", "no")
    assert (vcd("a dog", "yes"), vcd("a dog", "no")) == ("no", "yes")


def test_the_yes_ratio_is_of_the_predictions(tmp_path: Path) -> None:
    benchmark = questions(tmp_path / "p.json", ["yes", "no", "no", "no"])
    assert benchmark.score(answers(["yes"] * 4))["yes_ratio"] == 1.0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["Yes", "no", "?"]))))
def test_metrics_by_counting(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    rows.append(("yes", "Yes"))  # a file has a row
    benchmark = questions(tmp_path_factory.mktemp("pope") / "p.json", [label for label, _ in rows])
    score = benchmark.score(answers([text for _, text in rows]))
    said = [text.lower() for _, text in rows]
    hit = sum(label == text.lower() == "yes" for label, text in rows)
    precision, recall = hit / said.count("yes"), hit / [label for label, _ in rows].count("yes")
    expected = {
        "accuracy": sum(label == text.lower() for label, text in rows) / len(rows),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": said.count("yes") / len(rows),
        "unknown": said.count("?"),
        "reference.unknown": 0,
        "reference.yes_ratio": (len(rows) - said.count("no")) / len(rows),
    }
    assert {name: score[name] for name in expected} == pytest.approx(expected)
    assert "auc" not in score


def test_ratios_over_nothing_are_zero(tmp_path: Path) -> None:
    benchmark = questions(tmp_path / "p.json", ["no", "no"])
    score = benchmark.score(answers(["no", "no"], [-1.0, -2.0]))
    assert (score["precision"], score["recall"], score["f1"], score["auc"]) == (0, 0, 0, 0.5)


def test_scores_are_used_only_where_all_answers_have_one(tmp_path: Path) -> None:
    benchmark = questions(tmp_path / "p.json", ["yes", "no"])
    some = {"0": Answer("yes", 1.0), "1": Answer("no")}
    assert {"auc", "matched_accuracy"}.isdisjoint(benchmark.score(some))
    score = benchmark.score(answers(["yes", "yes"], [0.1, 7.0]))
    assert score["auc"] == 0.0 and score["accuracy"] == 0.5


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=1),
    st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_auc_is_the_share_of_pairs(rows: list[tuple[int, bool, int]], times: list[int]) -> None:
    scores, labels, images = (np.array(column) for column in zip(*rows, strict=True))
    images[0] = 4  # the weights are one for each of five images
    weigh = image_auc(scores.astype(float), labels.astype(float), images)
    each = [times[image] for image in images]
    won = pairs = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            pairs += each[i] * each[j]
            won += each[i] * each[j] * (float(scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
    expected = won / pairs if pairs else 0.5
    assert weigh(np.array([times], dtype=float))[0] == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 11)), min_size=1, max_size=30
    )
)
def test_matched_thresholds_come_from_the_other_images(
    rows: list[tuple[int, bool, int]],
) -> None:
    scores, labels, images = (np.array(column) for column in zip(*rows, strict=True))
    found = matched_right(scores.astype(float), labels.astype(float), images)
    for (score, label, image), right in zip(rows, found, strict=True):
        others = [row for row in rows if row[2] % 5 != image % 5]
        wanted = sum(row[1] for row in others)
        candidates = [float("inf"), *sorted({row[0] for row in others}, reverse=True)]
        off = [abs(sum(row[0] >= t for row in others) - wanted) for t in candidates]
        assert right == ((score >= candidates[off.index(min(off))]) == label)


def test_a_shift_towards_yes_changes_neither_auc_nor_matched_accuracy(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    benchmark = questions(tmp_path / "p.json", ["yes", "no"] * 60, per_image=6)
    scores = generator.normal([1, 0] * 60)

    def score(shift: float) -> dict[str, float]:
        moved = (scores + shift).tolist()
        return benchmark.score(answers(["yes" if s > 0.5 else "no" for s in moved], moved))

    plain, shifted = score(0.0), score(1.0)
    assert shifted["yes_ratio"] > plain["yes_ratio"] + 0.2
    for metric in ("auc", "matched_accuracy"):
        assert shifted[metric] == pytest.approx(plain[metric])


def test_runs_with_and_without_scores_share_the_other_metrics(tmp_path: Path) -> None:
    benchmark = questions(tmp_path / "p.json", ["yes", "no"])
    ours = benchmark.tally(answers(["yes", "no"], [1.0, 0.0]))
    theirs = benchmark.tally(answers(["no", "no"]))
    found = compare([ours], [theirs], resamples=10)
    assert set(found) == set(theirs.metrics) and found["recall"].difference.value == 1.0
    with pytest.raises(CdkitError, match="the run has no metric auc"):
        compare([ours], [theirs], only=["auc"])


def test_fixed_thresholds_give_the_spread_over_fresh_images() -> None:
    """Resampling holds the matched thresholds fixed: its error must be the true one."""
    generator = np.random.default_rng(5)
    labels, images = np.array([1.0, 0.0] * 180), np.repeat(np.arange(60), 6)

    def fresh() -> np.ndarray:
        scores = labels + generator.normal(size=360) + generator.normal(size=60)[images]
        return matched_right(scores, labels, images)

    runs = [fresh() for _ in range(400)]
    weights = generator.multinomial(60, np.full(60, 1 / 60), size=400) / 60
    inside = [np.std(weights @ run.reshape(60, 6).mean(axis=1)) for run in runs[:50]]
    assert np.mean(inside) == pytest.approx(np.std([run.mean() for run in runs]), rel=0.15)


def test_weights_count_for_every_metric(tmp_path: Path) -> None:
    """An image at weight two is the image asked twice, for each metric but the fixed thresholds."""
    generator = np.random.default_rng(1)
    labels = generator.choice(["yes", "no"], 18).tolist()
    texts = generator.choice(["Yes", "No", "maybe"], 18).tolist()
    scores = generator.normal(size=18).round(1).tolist()
    times = [2, 0, 1, 3, 1, 1, 0, 2, 1]
    repeated = [i for i in range(18) for _ in range(times[i // 2])]
    tally = questions(tmp_path / "a.json", labels).tally(answers(texts, scores))
    weighed = tally.at(np.array([times], dtype=float))
    expected = questions(tmp_path / "b.json", [labels[i] for i in repeated]).score(
        answers([texts[i] for i in repeated], [scores[i] for i in repeated])
    )
    for name in {*tally.metrics} - {"matched_accuracy"}:
        assert weighed[name][0] == pytest.approx(expected[name]), name


def test_a_file_is_read_in_order_with_its_hash(tmp_path: Path) -> None:
    rows = [GOOD | {"question_id": "b"}, GOOD | {"question_id": 7, "label": " No"}]
    benchmark = POPE(write(tmp_path / "p.json", *rows))
    first, second = benchmark.samples()
    assert (first.id, first.image, first.prompt, first.target) == (
        *("b", "a.jpg", "Is there a cat?"),
        "yes",
    )
    assert (second.id, second.target, second.group) == ("7", "no", "a.jpg")
    digest = hashlib.sha256((tmp_path / "p.json").read_bytes()).hexdigest()
    assert benchmark.describe() == {
        "benchmark": "pope",
        "path": str(tmp_path / "p.json"),
        "parsers": ["strict", "reference"],
        "max_new_tokens": 16,
        "question_suffix": "",
        "versions": {"strict": 1, "reference": 1},
        "sources": {str(tmp_path / "p.json"): digest},
    }
    json.dumps(benchmark.describe())


def test_circulating_variants_are_read_alike(tmp_path: Path) -> None:
    typo = {"imange" if key == "image" else key: value for key, value in GOOD.items()}
    plain = POPE(write(tmp_path / "a.json", GOOD))
    for name, data in {
        "imange.json": json.dumps(typo).encode(),
        "bom.json": b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n",
        "blank.json": b"\n" + json.dumps(GOOD).encode() + b"\n  \n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert POPE(tmp_path / name).samples() == plain.samples(), name


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"p.json is empty: fetch it anew or give another file"),
        ([GOOD, [1, 2]], r"p.json:2 holds a JSON list: the file holds one JSON object a line"),
        ([{**GOOD, "label": "maybe"}], r"p.json:1 has the label 'maybe': a label is yes or no"),
        ([{**GOOD, "label": None}], r"p.json:1 lacks 'label': every row needs it as text"),
        ([{**GOOD, "text": " "}], r"p.json:1 has ' ' as 'text': every row needs it as text"),
        ([GOOD, GOOD], r"p.json:2 has the question_id 1 again: each id stands once"),
        ([{**GOOD, "image": "../x.jpg"}], r"p.json:1: the image name '../x.jpg' is not inside"),
        ([{**GOOD, "image": "/etc/x.jpg"}], r"p.json:1: the image name .* use a file name or a"),
        ([{**GOOD, "image": "C:\\x.jpg"}], r"p.json:1: the image name .* is not inside"),
        ([{**GOOD, "image": "a\0.jpg"}], r"p.json:1: the image name .* is not inside"),
        ([{**GOOD, "image": "a\\..\\x.jpg"}], r"p.json:1: the image name .* is not inside"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(CdkitError, match=message):
        POPE(write(tmp_path / "p.json", *rows))


def test_a_row_without_a_label_is_told_by_its_line(tmp_path: Path) -> None:
    bare = {"question_id": 2, "image": "a.jpg", "text": "Is there a dog?"}
    with pytest.raises(CdkitError, match=r"p.json:2 lacks 'label'"):
        POPE(write(tmp_path / "p.json", GOOD, bare))


def test_broken_bytes_are_one_clear_error(tmp_path: Path) -> None:
    for data, message in {
        b'{"question_id": 1,': r"p.json:1 is not valid JSON",
        b"\xff\xfe\x00": r"p.json is not UTF-8 text",
    }.items():
        (tmp_path / "p.json").write_bytes(data)
        with pytest.raises(CdkitError, match=message):
            POPE(tmp_path / "p.json")
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CdkitError, match=r"cannot be read .*: give the path of a file"):
            POPE(path)


def test_faulty_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", GOOD)
    with pytest.raises(CdkitError, match=r"'strikt'. Did you mean 'strict'\?"):
        POPE(path, parsers=("strikt",))
    with pytest.raises(CdkitError, match="name one or more, none twice"):
        POPE(path, parsers=("vcd", "vcd"))
    with pytest.raises(CdkitError, match="max_new_tokens is 0: an answer needs 1 or more"):
        POPE(path, max_new_tokens=0)


def test_every_sample_is_answered_once(tmp_path: Path) -> None:
    benchmark = questions(tmp_path / "p.json", ["yes"] * 6)
    with pytest.raises(CdkitError, match=r"5 of 6 samples have no answer \(1, 2, 3, ...\)"):
        benchmark.score(answers(["yes"]))
    with pytest.raises(CdkitError, match=r"1 answers belong to no sample \(6\)"):
        benchmark.score(answers(["yes"] * 7))
    with pytest.raises(CdkitError, match="a yes score is NaN"):
        Answer("yes", float("nan"))


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    (sample,) = POPE(write(tmp_path / "p.json", GOOD)).samples()
    with pytest.raises(CdkitError, match=r"sample 1 needs the image .*a.jpg, which is no file"):
        sample.image_in(tmp_path)
    (tmp_path / "a.jpg").touch()
    assert sample.image_in(tmp_path) == tmp_path / "a.jpg"


def test_the_three_benchmarks_are_registered() -> None:
    assert {"pope", "chair", "mme"} <= set(BENCHMARKS)
    assert all((cls.__doc__ or "").strip() and cls.bibtex for cls in BENCHMARKS.values())

"""The gallery: drawn by lot and never by hand, and the overlays are the numbers they show."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cdkit
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.reports import gallery, heatmaps
from cdkit.evals.reports.results import AttentionOverlay, LayerHeatmap
from cdkit.evals.runner import attention_overlays
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.example_gallery import example_gallery
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally

WORDS = ("yes", "no")


def samples(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"s{i}", f"{i}.png", "cat?", f"{i}", "yes") for i in range(count))


def made(
    said: Mapping[str, Sequence[str]], metric: str = "accuracy"
) -> tuple[dict[str, Tally], dict[str, dict[str, Answer]]]:
    """Method -> its answers; "yes" is right (of CHAIR_s: counted, so wrong)."""
    tallies, answers = {}, {}
    for method, words in said.items():
        own = samples(len(words))
        column = np.array([float(word.startswith("yes")) for word in words])
        tallies[method] = Tally(own, {"c": column}, {}, binary={metric: "c"})
        answers[method] = {s.id: Answer(word) for s, word in zip(own, words, strict=True)}
    return tallies, answers


SAID = {
    "plain": ("yes", "no", "yes", "no", "yes", "no"),
    "other": ("yes", "yes", "no", "no", "yes!", "no, never"),
}
"""Alike; mended; broken; alike; reworded, both right; reworded, both wrong."""


def test_each_sample_is_of_the_kind_that_it_is() -> None:
    drawn = gallery.draw(*made(SAID), count=9)
    assert {sample.id: kind for sample, kind in drawn.samples} == {
        "s1": "mended",
        "s2": "broken",
        "s4": "reworded",
        "s5": "reworded",
    }
    assert drawn.among == {"mended": 1, "broken": 1, "reworded": 2} and drawn.total == 6
    rule = drawn.rule("plain", 0)
    assert rule.startswith("4 of 6 questions are answered differently") and "Shown: 4" in rule


def test_a_counted_mistake_is_wrong() -> None:
    """CHAIR_s counts what hallucinates: to be counted no more is mended."""
    drawn = gallery.draw(*made(SAID, "chair_s"), count=9)
    kinds = {sample.id: kind for sample, kind in drawn.samples}
    assert kinds["s1"] == "broken" and kinds["s2"] == "mended"


def test_the_base_decides_what_mended_means() -> None:
    drawn = gallery.draw(*made(SAID), count=9, base="other")
    kinds = {sample.id: kind for sample, kind in drawn.samples}
    assert kinds["s1"] == "broken" and kinds["s2"] == "mended"


@given(
    st.lists(st.tuples(*[st.sampled_from(WORDS)] * 3), min_size=1, max_size=30),
    st.integers(0, 6),
    st.integers(0, 3),
)
def test_the_lot_is_fair(rows: list[tuple[str, str, str]], count: int, seed: int) -> None:
    """Only differing ones, none twice, the kinds in turn; blind to methods' names and order."""
    said = {name: [row[i] for row in rows] for i, name in enumerate(("plain", "a", "b"))}
    drawn = gallery.draw(*made(said), count=count, seed=seed)
    ids = [sample.id for sample, _ in drawn.samples]
    differ = {f"s{i}" for i, row in enumerate(rows) if len(set(row)) > 1}
    assert len(set(ids)) == len(ids) == min(count, len(differ)) and set(ids) <= differ
    of_kind = {k: sum(kind == k for _, kind in drawn.samples) for k in gallery.KINDS}
    for kind, shown in of_kind.items():
        full = shown == drawn.among[kind]
        assert full or all(shown >= other - 1 for other in of_kind.values())
    renamed = {"plain": said["plain"], "z": said["b"], "y": said["a"]}
    assert gallery.draw(*made(renamed), count=count, seed=seed) == drawn


def test_another_seed_draws_others() -> None:
    said = {"plain": ["yes"] * 40, "other": ["no"] * 40}
    drawn = {gallery.draw(*made(said), count=3, seed=seed).samples for seed in range(5)}
    assert len(drawn) == 5


def test_nothing_to_show_is_told() -> None:
    drawn = gallery.draw(*made({"plain": ["yes"], "other": ["yes"]}), count=4)
    assert drawn.samples == () and gallery.ALL_ALIKE in drawn.rule("plain", 0)


def test_right_is_that_of_the_samples_own_task() -> None:
    """As MME counts: a column a task, 0 in the samples of the others."""
    columns = {"a.right": np.array([1.0, 0, 0, 0]), "b.right": np.array([0, 0, 1.0, 0])}
    binary = {"a.acc": "a.right", "b.acc": "b.right"}
    tally = Tally(samples(4), columns, {}, binary=binary)
    found = gallery.right(tally)
    assert found is not None and found.tolist() == [1, 0, 1, 0]
    other = replace(tally, binary={"accuracy": "a.right", "reference.accuracy": "b.right"})
    found = gallery.right(other)
    assert found is not None and found.tolist() == [1, 0, 0, 0]  # the first parser's alone
    assert gallery.right(replace(tally, binary={})) is None


def test_answers_stand_together_where_they_are_equal() -> None:
    tallies, answers = made({**SAID, "third": SAID["plain"]})
    sample = tallies["plain"].samples[1]
    found = gallery.shared_answers(sample, tallies, answers, {"no": "a note"})
    assert [(s.text, s.methods, s.right, s.note) for s in found] == [
        ("no", ("plain", "third"), False, "a note"),
        ("yes", ("other",), True, ""),
    ]


@pytest.mark.parametrize("size", [(40, 30), (900, 500)])
def test_a_thumbnail_is_small(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8))
    data, media_type = gallery.thumbnail(noise)
    small = Image.open(io.BytesIO(data))
    assert max(small.size) == min(max(size), gallery.THUMBNAIL) and len(data) < 60_000
    assert media_type == f"image/{str(small.format).lower()}"


# ---- overlays ------------------------------------------------------------------------------------


def opened(uri: str) -> np.ndarray:
    (data,) = re.findall(r"data:image/png;base64,(.*)", uri)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_tile_has_its_weights_where_the_tokens_are() -> None:
    weights = np.array([0.0, 0.1, 0.2, 0.0, 0.4, 0.0], dtype=np.float32)
    (panel,) = heatmaps.panels(LayerHeatmap("m", "t", mask=False, layers=weights[None]), (2, 3))
    pixels = opened(panel.picture)
    assert pixels.shape == (2, 3, 4) and panel.label == "70 %"
    expected = weights.reshape(2, 3) / 0.4 * 255 * heatmaps.STRONGEST
    assert np.abs(pixels[..., 3] - expected).max() <= 0.5


def test_a_mask_is_not_scaled_up() -> None:
    (panel,) = heatmaps.panels(
        LayerHeatmap("m", "t", mask=True, layers=np.full((1, 4), 0.25)), (2, 2)
    )
    assert opened(panel.picture)[..., 3].max() == round(0.25 * 255 * heatmaps.STRONGEST)
    assert panel.label == "25 %"


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens are no grid of 2 x 2"):
        heatmaps.tile(np.zeros(6), (2, 2), mask=False)


# ---- attention over the picture ------------------------------------------------------------------


def one_overlay(prepared: PreparedRun, engine: AnswerEngine, *names: str) -> AttentionOverlay:
    question = next(iter(prepared.loaded[0].questions.values()))
    found = attention_overlays.collect_overlays(
        engine, {n: cdkit.load(n) for n in names}, [question]
    )
    assert not isinstance(found, str)
    return found[question]


def test_the_strips_are_what_the_trace_says(prepared: PreparedRun, engine: AnswerEngine) -> None:
    overlay = one_overlay(prepared, engine, "plain", "cmac", "identical")
    shown = [(heatmap.method, heatmap.title, heatmap.mask) for heatmap in overlay.heatmaps]
    assert shown == [
        ("plain", "original: attention", False),
        ("cmac", "original: attention", False),  # with calibrated positions
        ("cmac", "distorted: attention", False),
        ("cmac", "distorted: mask", True),
    ]  # and identical looks as plain does
    question = next(iter(prepared.loaded[0].questions.values()))
    inputs = engine.inputs([question])
    with cdkit.attach(
        engine.model,
        cdkit.load("cmac"),
        processor=engine.processor,
        sample_ids=[question.sample_id],
        trace=("image_attention", "mask"),
    ) as run:
        engine.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        step = run.trace.steps[0]
    for layer in range(4):
        weights = step.image_attention["distorted"][layer][0].mean(dim=0)
        assert np.allclose(overlay.heatmaps[2].layers[layer], weights, atol=1e-6)
        mask = step.mask["distorted"][layer][0, :, -1].float().mean(dim=0)
        assert np.allclose(overlay.heatmaps[3].layers[layer], mask)


def test_the_picture_is_what_the_model_was_given(
    prepared: PreparedRun, engine: AnswerEngine
) -> None:
    overlay = one_overlay(prepared, engine, "plain")
    question = next(iter(prepared.loaded[0].questions.values()))
    file = np.asarray(Image.open(question.image).convert("RGB")).astype(int)
    assert overlay.grid == (8, 8) and np.abs(overlay.picture.astype(int) - file).max() <= 1


def test_a_family_whose_tokens_are_no_grid_is_told(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(cdkit.adapter_for(engine.model)), "square_grid", False)
    question = next(iter(prepared.loaded[0].questions.values()))
    told = attention_overlays.collect_overlays(engine, {"plain": cdkit.load("plain")}, [question])
    assert (
        told == f"{attention_overlays.NOTHING}: "
        "the image tokens of llava are no one grid of the picture."
    )


@pytest.mark.parametrize(
    ("name", "looks"),
    [("plain", False), ("vcd", False), ("cmac", True), ("cmac_cmpc", True), ("pai", True)],
)
def test_methods_that_look_at_attention(name: str, looks: bool) -> None:
    assert attention_overlays.changes_attention(cdkit.load(name)) == looks


def test_what_cannot_be_traced_is_told(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*rest: object) -> None:
        raise cdkit.CdkitError("its heads are spread")

    monkeypatch.setattr(AnswerEngine, "first_trace", refuse)
    question = next(iter(prepared.loaded[0].questions.values()))
    told = attention_overlays.collect_overlays(engine, {"plain": cdkit.load("plain")}, [question])
    assert told == f"{attention_overlays.NOTHING}: its heads are spread"


def test_a_gallery_needs_no_model(prepared: PreparedRun) -> None:
    """As when finished runs are compared, with a base of another name."""
    pope = prepared.loaded[0]
    answers = {
        name: {sample: Answer(word) for sample in pope.questions}
        for name, word in (("run one", "yes"), ("run two", "no"))
    }
    found = example_gallery(
        "pope", pope.benchmark, pope.questions, answers, count=3, base="run two"
    )
    assert len(found.examples) == 3 and "run two is wrong" in found.rule and not found.notes
    for example in found.examples:
        assert example.overlay is None
        assert example.kind == ("mended" if example.target == "yes" else "broken")

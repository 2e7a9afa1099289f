"""What the image encoder returned is kept: it runs less often, and no answer changes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from evals.eval_run import Part, answer, draw, journal_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import FAMILIES, inputs, tiny
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPVisionModel

import cdkit
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.runner import encoder_cache, engines
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.encoder_cache import ENTRIES, PIXELS, EncoderCache
from cdkit.evals.runner.questions import asked_of
from cdkit.evals.runner.timing import measure
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import ADAPTERS, ModelAdapter

SIZE = 4
METHODS = ["plain", "vcd", "cmac"]
TRIED = [
    name
    for name, family in FAMILIES.items()
    if family.model_type in ADAPTERS and ADAPTERS[family.model_type].pixel_argument == PIXELS
]
"""All but Phi-4 multimodal, whose encoder gives embeddings: nothing of it is kept."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    files = draw(tmp_path_factory.mktemp("world"), images=3)
    return [Part(f"pope_{name}", POPE(path), files.images) for name, path in files.pope.items()]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the micro model's tower is given."""
    found: list[int] = []
    forward = CLIPVisionModel.forward

    def counted(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", counted)
    return found


def test_a_run_encodes_an_image_once_and_answers_as_without(
    parts: list[Part], tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distorted images of VCD, one for each question, are encoded as before."""
    asked = {"parts": parts, "batch_size": SIZE, "method": METHODS}
    answer(folder=tmp_path / "kept", **asked)  # type: ignore[arg-type]
    kept = sum(encoded)
    encoded.clear()
    monkeypatch.setattr(engines, "EncoderCache", lambda: EncoderCache(0))
    answer(folder=tmp_path / "none", **asked)  # type: ignore[arg-type]
    without = sum(encoded)

    questions = len({(q.image, q.prompt) for part in parts for q in part.benchmark.samples()})
    noisy = questions + 1  # one more where the method is tried
    assert without >= 4 * questions
    assert kept - noisy < 0.25 * (without - noisy)
    one, other = (tmp_path / name / "predictions.jsonl" for name in ("kept", "none"))
    assert one.read_bytes() == other.read_bytes()


def test_a_stopped_run_goes_on_with_the_same_answers(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start encodes what the first one had kept."""
    asked = {"parts": parts, "batch_size": SIZE, "method": METHODS}
    answer(folder=tmp_path / "whole", **asked)  # type: ignore[arg-type]
    calls = 0
    answers = AnswerEngine.answers

    def stopping(self: AnswerEngine, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 14:  # within the batches of the first images
            raise KeyboardInterrupt
        return answers(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AnswerEngine, "answers", stopping)
        answer(folder=tmp_path / "stopped", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "stopped" / "predictions.jsonl").exists()
    answer(folder=tmp_path / "stopped", resume=True, **asked)  # type: ignore[arg-type]
    one, other = (tmp_path / name / "predictions.jsonl" for name in ("whole", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_the_model_is_as_before_and_an_engine_keeps_nothing_by_itself(
    parts: list[Part], encoded: list[int]
) -> None:
    model, processor = cdkit.load_model("micro")
    asked = [asked_of(s, parts[0].images, 4) for s in list(parts[0].benchmark.samples())[:2]]
    bare = AnswerEngine(model, processor)
    kept = replace(bare, encoder_cache=EncoderCache())
    batch, ids = bare.inputs(asked), [q.sample_id for q in asked]
    found = {}
    for name, engine in (("bare", bare), ("kept", kept)):
        found[name] = [
            engine.answers(cdkit.load(method), batch, ids, limit=4, seed=None, beams=beams)
            for method in METHODS
            for beams in (False, True, False)
        ]
        assert "get_image_features" not in vars(model.model)
    # VCD encodes its own images too
    assert len(encoded) == 9 + 3 + 1 + 3
    assert found["bare"] == found["kept"]


class Calls:
    """An encoder in the place of a model's own, that counts."""

    def __init__(self, model: nn.Module, adapter: ModelAdapter, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        owner, name = adapter.encoder(model)
        inner = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return inner(*args, **kwargs)

        counted.__wrapped__ = inner  # type: ignore[attr-defined]
        patch.setattr(owner, name, counted)


@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TRIED)
def test_every_family(name: str, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that comes again, as another tensor, gives the same logits without the encoder."""
    model = tiny(name)
    adapter, cache = adapter_for(model), EncoderCache()
    calls = Calls(model, adapter, monkeypatch)
    options = {"max_new_tokens": 2, "do_sample": False, "num_beams": beams}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    is_encoded_early = model._supports_mm_encoder_outputs()

    @contextmanager
    def methods(which: str | None) -> Iterator[None]:
        if which is None:
            yield
            return
        with cdkit.attach(model, cdkit.load(which), optimize=True):
            yield

    for method in (None, "cmac"):
        with torch.inference_mode(), methods(method):
            wanted = model.generate(**inputs(name, 0, 1), **options).logits
        for again in range(2):
            batch = inputs(name, 0, 1)
            before = calls.count
            with (
                torch.inference_mode(),
                cache.serving(*adapter.encoder(model), batch["pixel_values"]),
                methods(method),
            ):
                found = model.generate(**batch, **options).logits
            assert all(map(torch.equal, found, wanted))
            is_kept = is_encoded_early or beams == 1  # else the pixels are repeated for the beams
            expected = 0 if is_kept and (again or method) else 1
            assert calls.count - before == expected
    assert 0 < cache.nbytes or (beams > 1 and not is_encoded_early)


class Tower(nn.Module):
    """An encoder whose output tells its arguments apart, with inner states that no one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        self.count += 1
        size = 0 if image_sizes is None else image_sizes.sum()
        each: Any = [row * 2 + size + len(kwargs) for row in pixel_values]
        inner = pixel_values.new_zeros(1000)
        return BaseModelOutputWithPooling(
            last_hidden_state=inner, pooler_output=each, hidden_states=(inner, inner)
        )


ENCODER = "get_image_features"


def call(cache: EncoderCache, tower: Any, pixels: Tensor, **given: Any) -> Any:
    with cache.serving(tower, ENCODER, pixels):
        return tower.get_image_features(pixels, **given)


def batch(number: int, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((rows, 3), float(number), dtype=dtype)


@given(
    asked=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 1, 2]), st.integers(1, 2)), max_size=30
    ),
    capacity=st.sampled_from([0, 50, 100, 200, 10_000]),
)
@settings(deadline=None)
def test_any_calls_in_any_order(asked: list[tuple[int, int | None, int]], capacity: int) -> None:
    tower, cache = Tower(), EncoderCache(capacity)
    for number, size, rows in asked:
        pixels = batch(number, rows)
        sizes = None if size is None else torch.tensor([[size, size]])
        found = call(cache, tower, pixels, image_sizes=sizes)
        wanted: Any = Tower().get_image_features(pixels, sizes)
        assert all(map(torch.equal, found.pooler_output, wanted.pooler_output))
        found.pooler_output = []  # as `generate` does for beams: the cache has its own
        assert cache.nbytes <= capacity
    assert tower.count == len(asked) or capacity
    assert tower.count >= len(set(asked))


def test_the_latest_are_kept() -> None:
    tower, cache = Tower(), EncoderCache()
    for number in range(ENTRIES + 1):
        call(cache, tower, batch(number))
    call(cache, tower, batch(1))
    assert tower.count == ENTRIES + 1
    call(cache, tower, batch(0))  # the oldest one had to go, and the next now does
    call(cache, tower, batch(1))
    assert tower.count == ENTRIES + 2
    call(cache, tower, batch(2))
    assert tower.count == ENTRIES + 3


def test_bytes_are_those_of_whole_storages() -> None:
    cache, tower = EncoderCache(), Tower()
    whole = torch.zeros(100, 3)
    call(cache, tower, whole[:2])
    assert cache.nbytes == whole.nbytes + 2 * 3 * 4  # a view keeps it all; no inner states
    call(EncoderCache(whole.nbytes), tower, whole[:2])
    assert tower.count == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"image_sizes": torch.tensor([[1, 1]])}),
        ({"image_sizes": torch.tensor([[1, 2]])}, {"image_sizes": torch.tensor([[2, 1]])}),
        ({"layer": 1}, {"layer": 2}),
        ({"layer": [1, 2]}, {"layer": [1, 3]}),
        ({"layer": 1}, {"layer": True}),
        ({"layer": {"a": batch(1)}}, {"layer": {"a": batch(2)}}),
        ({"other": object()}, {"other": object()}),
    ],
)
def test_all_arguments_count(first: Any, second: Any) -> None:
    tower, cache = Tower(), EncoderCache()
    call(cache, tower, batch(1), **first)
    call(cache, tower, batch(1), **second)
    assert tower.count == 2
    call(cache, tower, batch(1), **first)
    assert tower.count == 2


def test_one_number_and_the_dtype_count() -> None:
    tower, cache = Tower(), EncoderCache()
    other = batch(1)
    other[1, 2] += 1e-6
    for pixels in (batch(1), other, batch(1, dtype=torch.float64), batch(1, dtype=torch.bfloat16)):
        call(cache, tower, pixels)
    assert tower.count == 4


def test_what_is_spared_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer's seconds are those that it would take with nothing kept."""
    now = [0.0]

    class Slow(Tower):
        def get_image_features(self, pixel_values: Tensor, *rest: Any, **kwargs: Any) -> Any:
            now[0] += 2.0
            return super().get_image_features(pixel_values, *rest, **kwargs)

    monkeypatch.setattr(encoder_cache, "perf_counter", lambda: now[0])
    tower, cache = Slow(), EncoderCache()
    for spared in (0.0, 2.0, 4.0):
        call(cache, tower, batch(1))
        assert cache.seconds_saved == spared
    call(cache, tower, batch(2))
    assert cache.seconds_saved == 4.0 and now == [4.0]


def test_the_time_of_a_run_counts_the_encoder_for_each_method(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first method to answer a batch encodes its images; the others are not ahead by that."""
    forward = CLIPVisionModel.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        sleep(0.2)
        return forward(*args, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", slow)
    found = answer(
        parts=parts[:1], folder=tmp_path / "run", batch_size=8, limit=2, method=["plain", "cmac"]
    )
    manifest = json.loads((found.folder / "manifest.json").read_text(encoding="utf-8"))
    spent = {each["method"]: each["seconds"] for each in manifest["seconds"]}
    batches = len({row["batch"] for row in journal_rows(found.folder)})
    assert min(spent.values()) >= 0.2 * batches


def test_a_timed_answer_pays_for_its_images(parts: list[Part], encoded: list[int]) -> None:
    engine = AnswerEngine(*cdkit.load_model("micro"), encoder_cache=EncoderCache())
    asked = [asked_of(s, parts[0].images, 2) for s in list(parts[0].benchmark.samples())[:2]]
    measure(engine, {"plain": cdkit.load("plain")}, asked, rounds=2)
    assert encoded == [2, 2, 2]


def test_distorted_images_are_not_kept() -> None:
    tower, cache = Tower(), EncoderCache()
    pixels = batch(1)
    for _ in range(2):
        with cache.serving(tower, ENCODER, pixels):
            tower.get_image_features(pixels_of(pixels))
    assert tower.count == 2 and cache.nbytes == 0


def pixels_of(pixels: Tensor) -> Tensor:
    """Of a distorted branch."""
    return pixels + 1


def test_what_is_no_output_of_a_model_is_handed_on() -> None:
    class Pair(Tower):
        def get_image_features(self, pixel_values: Tensor, *rest: Any, **kwargs: Any) -> Any:
            self.count += 1
            return (pixel_values,)

    tower, cache = Pair(), EncoderCache()
    for _ in range(2):
        (found,) = call(cache, tower, batch(1))
        assert found.equal(batch(1))
    assert tower.count == 2 and cache.nbytes == 0


def test_the_encoder_is_put_back_after_an_error() -> None:
    tower, cache = Tower(), EncoderCache()
    with pytest.raises(ZeroDivisionError), cache.serving(tower, ENCODER, batch(1)):
        raise ZeroDivisionError
    assert "get_image_features" not in vars(tower)

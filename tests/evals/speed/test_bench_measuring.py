"""What a bench takes down: by its clock, by its count of living tensors, in its own order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.speed import shapes
from cdkit.evals.speed.agreement import check_agreement, reference
from cdkit.evals.speed.bench_results import BenchSection
from cdkit.evals.speed.bench_run import dtype_of
from cdkit.evals.speed.bench_runners import Tick
from cdkit.evals.speed.bench_settings import BenchSettings
from cdkit.evals.speed.clock import Stopwatch, Times
from cdkit.evals.speed.machine import cpu_name
from cdkit.evals.speed.measuring import Measurements, measure, steps_of
from cdkit.evals.speed.memory import LiveTensors
from cdkit.evals.speed.prompts import make_prompts
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName, runner
from cdkit.evals.statistics.bootstrap import Estimate

# ---- memory ----------------------------------------------------------------------------------


def test_living_tensors_are_counted_and_dead_ones_are_not() -> None:
    with LiveTensors([]) as counted:
        a = torch.zeros(1000)  # 4000 bytes
        assert counted.live == 4000
        b = a + 1
        a.add_(1)  # in place, and views: nothing new
        c = b[:10].view(2, 5)
        assert counted.live == counted.peak == 8000
        del a
        assert counted.live == 4000
        d = torch.ones(500)
        del b
        assert counted.live == 6000, "the view keeps its storage"
        del c
        assert counted.live == 2000 and counted.peak == 8000
        kept = [torch.ones(100) for _ in range(3)]
        assert counted.live == 2000 + 1200
    del kept, d


def test_known_tensors_are_not_counted() -> None:
    layer = nn.Linear(10, 10)
    with LiveTensors(layer.parameters()) as counted, torch.no_grad():
        made = layer.weight.t()
        assert counted.peak == 0
        made = layer(torch.ones(1, 10))
        assert counted.live == 40  # the ones are gone
        assert counted.peak == 80
    del made


# ---- the clock -------------------------------------------------------------------------------


def test_the_stopwatch_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 18.0])
    monkeypatch.setattr("cdkit.evals.speed.clock.perf_counter", lambda: next(now))
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    for _ in range(4):
        watch.token()
    assert watch.stop() == Times(first=2.0, per_token=2.0, whole=8.0)


def test_the_stopwatch_of_a_gpu_reads_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: events that take 5 ms from one to the next stand for them."""
    log: list[str] = []

    class Event:
        made = 0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.number = Event.made

        def record(self, stream: object) -> None:
            log.append(f"event {self.number} on {stream}")

        def elapsed_time(self, end: "Event") -> float:
            assert log[-1] == "synchronize"
            return 5.0 * (end.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    watch = Stopwatch(torch.device("cuda:0"))
    watch.start()
    watch.token()
    watch.token()
    assert watch.stop() == Times(first=0.005, per_token=0.005, whole=0.01)
    on = "on stream of cuda:0"
    assert log == ["synchronize", f"event 1 {on}", f"event 2 {on}", f"event 3 {on}", "synchronize"]


def test_the_stopwatch_of_another_accelerator_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def finish(device: torch.device) -> None:
        now[0] += 1.0

    monkeypatch.setattr("cdkit.evals.speed.clock.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.accelerator, "synchronize", finish)
    watch = Stopwatch(torch.device("mps"))
    watch.start()
    watch.token()
    watch.token()
    assert watch.stop() == Times(first=1.0, per_token=1.0, whole=2.0)


# ---- the rounds ------------------------------------------------------------------------------


@dataclass
class Pretended:
    """Answers at once and moves a clock that all share."""

    name: str
    seconds: float
    clock: list[float]
    log: list[str]
    short: bool = False
    model: Any = field(default_factory=lambda: SimpleNamespace(device=torch.device("cpu")))

    @contextmanager
    def ready(self) -> Iterator[None]:
        self.clock[0] += 100.0  # attaching is not a part of an answer
        yield

    def answer(self, limit: int, tick: Tick) -> Tensor:
        self.log.append(self.name)
        slower = 1 + len(self.log) // 3  # from round to round, for all alike
        for _ in range(limit - self.short):
            self.clock[0] += self.seconds * slower
            tick()
        return torch.zeros(1, limit - self.short, dtype=torch.long)

    def logits(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[VariantName, Pretended]:
    clock, log = [0.0], list[str]()
    for module in ("clock", "measuring"):
        monkeypatch.setattr(f"cdkit.evals.speed.{module}.perf_counter", lambda: clock[0])
    seconds = {
        PLAIN_NAME: 1.0,
        VariantName("two-pass", "vcd"): 2.0,
        VariantName("cdkit", "vcd"): 1.25,
    }
    return {name: Pretended(str(name), each, clock, log) for name, each in seconds.items()}


class Model(nn.Linear):
    @property
    def device(self) -> torch.device:
        return self.weight.device


def test_rounds_begin_with_another_variant_and_ratios_stay_within(
    pretended: dict[VariantName, Pretended],
) -> None:
    done = list[int]()
    model = Model(4, 4)
    taken = measure(pretended, model, new_tokens=3, rounds=2, advance=lambda: done.append(1))
    assert len(done) == 3 * steps_of(2)
    log = pretended[PLAIN_NAME].log
    assert log[:3] == ["plain", "vcd, two-pass", "vcd, cdkit"]
    assert log[3:6] == ["vcd, two-pass", "vcd, cdkit", "plain"]
    assert log[6:9] == ["vcd, cdkit", "plain", "vcd, two-pass"]
    assert len(taken[PLAIN_NAME].times) == 2, "the first round is not counted"
    assert all(seconds == 100.0 for own in taken.values() for seconds in own.attach)


def test_an_answer_that_is_too_short_is_an_error(pretended: dict[VariantName, Pretended]) -> None:
    pretended[VariantName("cdkit", "vcd")].short = True
    with pytest.raises(CdkitError, match="vcd, cdkit: 2 of 3 tokens were answered"):
        measure(pretended, Model(4, 4), new_tokens=3, rounds=1)


def test_ratios_are_medians_of_ratios_within_a_round() -> None:
    """Not ratios of medians: plain's rounds differ."""

    def taken(*whole: float, memory: int) -> Measurements:
        return Measurements(tuple(Times(1.0, 1.0, w) for w in whole), (0.0,) * len(whole), memory)

    name = VariantName("cdkit", "vcd")
    section = BenchSection(
        batch=1,
        text_tokens=2,
        image_tokens=4,
        new_tokens=2,
        weights=50,
        taken={
            PLAIN_NAME: taken(1.0, 2.0, 10.0, memory=80),
            name: taken(3.0, 2.0, 40.0, memory=100),
        },
        calls={},
        agreements={},
        one_candidate={},
    )
    assert section.ratio(name, "whole_answer") == Estimate(3.0, 1.0, 4.0)
    assert section.seconds(name, "whole_answer") == Estimate(3.0, 2.0, 40.0)
    assert section.memory_ratio(name) == 1.25


# ---- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "count"), [("7b", 7.063e9), ("0.5b", 0.494e9 + 0.3035e9 + 1.72e6)]
)
def test_parameters_are_those_of_the_real_models(shape: str, count: float) -> None:
    assert shapes.parameters(shapes.config_of(shape)) == pytest.approx(count, rel=0.005)


def test_deep_is_the_7b_shape_made_narrow() -> None:
    deep: Any = shapes.config_of("deep")
    seven: Any = shapes.config_of("7b")
    for name in ("image_seq_length", "vision_feature_layer", "vision_feature_select_strategy"):
        assert getattr(deep, name) == getattr(seven, name), name
    text, like = deep.text_config, seven.text_config
    assert (text.num_hidden_layers, text.hidden_size) == (like.num_hidden_layers, 64) == (32, 64)
    assert shapes.parameters(deep) < 2e6
    assert dtype_of(BenchSettings(shape="deep")) == torch.float32
    assert dtype_of(BenchSettings(shape="7b")) == torch.bfloat16


def test_image_tokens_follow_from_the_image() -> None:
    config: Any = shapes.config_of("7b", 144)
    assert config.vision_config.image_size == 168 and config.image_seq_length == 144


@pytest.fixture(scope="module", params=["7b", "0.5b", "deep"])
def thin(request: pytest.FixtureRequest) -> Any:
    """A real shape with little of everything, in half precision."""
    config: Any = shapes.config_of(request.param, 16)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = vision.num_hidden_layers = 3
    text.hidden_size, text.intermediate_size, text.head_dim = 112, 128, 8
    text.num_attention_heads = 14
    text.num_key_value_heads = 2 if request.param == "0.5b" else 14
    vision.hidden_size = vision.intermediate_size = 64
    vision.num_attention_heads = 4
    model = shapes.blank(config, torch.bfloat16, torch.device("cpu"))
    shapes.randomise(model, 0)
    return model


def test_random_weights_are_drawn_where_and_how_they_are_used(thin: Any) -> None:
    assert {p.dtype for p in thin.parameters()} == {torch.bfloat16}
    rates = thin.model.language_model.rotary_emb.inv_freq
    assert rates.dtype == torch.float32 and rates.isfinite().all()
    tied = thin.lm_head.weight is thin.model.language_model.embed_tokens.weight
    assert tied == thin.config.tie_word_embeddings
    again = shapes.blank(thin.config, torch.bfloat16, torch.device("cpu"))
    shapes.randomise(again, 0)
    pairs = zip(thin.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_random_logits_are_sharp_and_depend_on_the_prompt(thin: Any) -> None:
    prompts = make_prompts(thin, batch=3, text_tokens=9, new_tokens=2, seed=0)
    assert (prompts.ids == thin.config.image_token_id).sum(dim=1).tolist() == [16] * 3
    with torch.no_grad():
        logits = thin(**prompts.inputs(), logits_to_keep=1).logits[:, -1].float()
    assert logits.isfinite().all()
    assert logits.std() == pytest.approx(shapes.SHARPNESS, rel=0.15)
    assert torch.corrcoef(logits).fill_diagonal_(0).abs().max() < 0.95
    assert len(set(logits.argmax(dim=-1).tolist())) == 3


@pytest.mark.parametrize("name", ["cmac", "vcd", "icd"])
def test_methods_run_on_random_shapes(thin: Any, name: str) -> None:
    """The stand-in tokenizer writes the text of methods that need words."""
    processor = shapes.stand_in(thin.config)
    prompts = make_prompts(thin, batch=2, text_tokens=9, new_tokens=5, seed=0)
    method = cdkit.attach(thin, cdkit.load(name), processor=processor).method
    expected = reference(thin, method, prompts, processor=processor, layers=3)
    made = runner(thin, processor, method, prompts, "cdkit")
    assert check_agreement(expected, {VariantName("cdkit", name): made})


def test_the_stand_in_tokenizer_gives_words_of_the_vocabulary() -> None:
    processor = shapes.stand_in(shapes.config_of("7b"))
    ids = processor.tokenizer("You are a confused objects detector", add_special_tokens=False)
    assert len(ids["input_ids"]) == 7
    assert all(3 <= token < 32000 for token in ids["input_ids"])
    assert processor.tokenizer.bos_token_id == 1


def test_the_processors_name(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(file) == "Some CPU @ 2 GHz"
    file.write_text("model name :\n")
    assert cpu_name(file) and cpu_name(tmp_path / "nowhere")

"""Calls a token: those of steps alone, of all that Python calls, and how tables show them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.evals.speed import counting
from cdkit.evals.speed.agreement import Agreement
from cdkit.evals.speed.bench_results import BenchSection
from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_runners import GenerateRunner, Tick
from cdkit.evals.speed.bench_settings import BenchSettings
from cdkit.evals.speed.bench_tables import how_to_read, lines
from cdkit.evals.speed.clock import Times
from cdkit.evals.speed.counting import FURTHER, TokenCalls, count_calls, counted
from cdkit.evals.speed.measuring import Measurements
from cdkit.evals.speed.profiling import Profile
from cdkit.evals.speed.prompts import make_prompts
from cdkit.evals.speed.textbook import TextbookRunner
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName

CPU = torch.device("cpu")


@dataclass
class Counted:
    """Five operators for the prompt, three a token; linear calls others, which do not count."""

    asked: list[int] = field(default_factory=list)

    @contextmanager
    def ready(self) -> Iterator[None]:
        torch.ones(3)  # attaching is not a part of an answer
        yield

    def answer(self, limit: int, tick: Tick) -> Tensor:
        self.asked.append(limit)
        x = torch.ones(4, 4)
        for _ in range(4):
            x = x + 1
        for _ in range(limit):
            x = torch.nn.functional.linear(x, x).softmax(-1)
            x.argmax()
        return torch.zeros(1, limit, dtype=torch.long)

    def logits(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError


def test_the_prompts_operators_and_inner_ones_are_not_counted() -> None:
    assert counted(Counted(), CPU, further=4) == TokenCalls(operators=3.0, kernels=None)


@pytest.mark.parametrize(("new_tokens", "longer"), [(2, 2), (4, 4), (64, 1 + FURTHER)])
def test_no_answer_is_longer_than_asked(new_tokens: int, longer: int) -> None:
    own, done = Counted(), list[int]()
    found = count_calls(
        {PLAIN_NAME: own}, CPU, new_tokens=new_tokens, advance=lambda: done.append(1)
    )
    assert found == {PLAIN_NAME: TokenCalls(3.0)} and own.asked == [1, longer] and done == [1]


def test_two_calls_of_the_model_take_twice_the_operators(model: Any) -> None:
    """A constant number a token, whatever the answer's length; cdkit's rows go in one call."""
    prompts, vcd = make_prompts(model, batch=2, text_tokens=9, new_tokens=9, seed=0), "vcd"
    method = cdkit.load(vcd)
    made: list[Any] = [
        GenerateRunner(model, prompts),
        TextbookRunner(model, prompts, method),
        GenerateRunner(model, prompts, method, None, True),
    ]
    plain, textbook, under_cdkit = (counted(own, CPU, further=5).operators for own in made)
    assert 1.4 * plain < textbook < 2 * plain
    assert plain < under_cdkit < textbook
    assert counted(made[1], CPU, further=8).operators == textbook == int(textbook)


def test_kernels_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: profiles as one gives them stand for it."""

    def pretended(work: Any, device: torch.device, *, tokens: int) -> Profile:
        return Profile(1.0, tokens, 50 + 10 * tokens, 0, {}, {}, kernels=30 + 7 * tokens)

    monkeypatch.setattr(counting, "profiled", pretended)
    told = counted(Counted(), torch.device("cuda"), further=8)
    assert told == TokenCalls(operators=10.0, kernels=7.0)


NAME = VariantName("cdkit", "vcd")


def bench_of(plain: TokenCalls, own: TokenCalls) -> Bench:
    taken = Measurements((Times(1.0, 1.0, 2.0),), (0.0,), 10)
    section = BenchSection(
        batch=1,
        text_tokens=2,
        image_tokens=4,
        new_tokens=2,
        weights=5,
        taken={PLAIN_NAME: taken, NAME: taken},
        calls={PLAIN_NAME: plain, NAME: own},
        agreements={PLAIN_NAME: Agreement(0.0, 1.0), NAME: Agreement(0.0, 1.0)},
        one_candidate={},
    )
    return Bench(BenchSettings(methods=("vcd",)), {}, "", (section,))


def test_tables_show_kernels_where_there_are_any() -> None:
    bench = bench_of(TokenCalls(200.0, 100.0), TokenCalls(250.0, 110.0))
    heads, plain, own = lines(bench.to_dict()["sections"][0])
    assert heads[-2:] == ["operators a token", "kernels a token"]
    assert plain[-2:] == ["200", "100"] and own[-2:] == ["250 (1.25)", "110 (1.10)"]
    assert any("Kernels a token" in line for line in how_to_read(bench.to_dict()))


def test_tables_of_a_cpu_have_operators_alone() -> None:
    bench = bench_of(TokenCalls(200.0), TokenCalls(203.5))
    heads, plain, own = lines(bench.to_dict()["sections"][0])
    assert heads[-1] == "operators a token" and len(heads) == len(plain) == len(own)
    assert plain[-1] == "200" and own[-1] == "204 (1.02)"
    assert not any("Kernels" in line for line in how_to_read(bench.to_dict()))

"""Threads: leaving waits, a second attachment is refused, the model is always restored."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

MakeInputs = Callable[..., dict[str, Tensor]]
ASKED: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


class Gate:
    """A logits processor that says that a call is under way, and holds it there."""

    def __init__(self) -> None:
        self.reached, self.free = threading.Event(), threading.Event()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.reached.set()
        assert self.free.wait(60)
        return scores


class Worker(threading.Thread):
    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error


@pytest.fixture
def own(make_model: Callable[..., Any]) -> Any:
    return make_model()


def is_stock(model: Any) -> bool:
    parts = model, model.model, model.model.language_model
    return not any({"generate", "forward", "_cdkit_attached"} & set(vars(x)) for x in parts)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", ["cmac", "vcd", "deco"])
def test_leaving_waits_for_the_call_under_way(
    name: str, optimize: bool, own: Any, make_inputs: MakeInputs
) -> None:
    inputs, method, gate = make_inputs("w1 w2"), cdkit.load(name), Gate()
    with cdkit.attach(own, method, optimize=optimize):
        wanted = own.generate(**inputs, **ASKED)
    with cdkit.attach(own, method, optimize=optimize):
        worker = Worker(lambda: own.generate(**inputs, **ASKED, logits_processor=[gate]))
        assert gate.reached.wait(60)
        threading.Timer(0.2, gate.free.set).start()
    assert gate.free.is_set() and is_stock(own)
    worker.join(60)
    assert worker.error is None and wanted.equal(worker.result)


@pytest.mark.parametrize("optimize", [True, False])
def test_a_call_after_the_block_is_plain(optimize: bool, own: Any, make_inputs: MakeInputs) -> None:
    """Also where its function was read off the model within the block."""
    inputs = make_inputs("w1 w2")
    stock, method = own.generate(**inputs, **ASKED), cdkit.load("cmac", alpha=3.0, beta=0.0)
    with torch.no_grad():
        logits = own(**inputs).logits
    with cdkit.attach(own, method, optimize=optimize):
        generate, forward = own.generate, own.forward
    assert stock.equal(generate(**inputs, **ASKED))
    with torch.no_grad():
        assert logits.equal(forward(**inputs).logits)
    with cdkit.attach(own, cdkit.load("vcd")):
        wanted = own.generate(**inputs, **ASKED)
        assert wanted.equal(generate(**inputs, **ASKED))  # as a call of the model is now


def test_a_second_attachment_from_another_thread(own: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs("w1 w2")

    def second(name: str) -> Any:
        with cdkit.attach(own, cdkit.load(name)):
            return own.generate(**inputs, **ASKED)

    with cdkit.attach(own, cdkit.load("cmac")):
        wanted = own.generate(**inputs, **ASKED)
        for name in ("vcd", "plain"):
            worker = Worker(lambda name=name: second(name))  # type: ignore[misc]
            worker.join(60)
            told = f"cannot attach {name}: cmac is attached to this model by another thread"
            assert isinstance(worker.error, cdkit.CdkitError) and told in str(worker.error)
        assert wanted.equal(own.generate(**inputs, **ASKED))
    assert is_stock(own)
    worker = Worker(lambda: second("vcd"))
    worker.join(60)
    assert worker.error is None and is_stock(own)


def test_many_threads_with_a_block_each(own: Any, make_inputs: MakeInputs) -> None:
    inputs, names = make_inputs("w1"), ["cmac", "vcd", "pai", "deco"]
    wanted = {}
    for name in names:
        with cdkit.attach(own, cdkit.load(name), sample_ids=["a"]):
            wanted[name] = own.generate(**inputs, **ASKED)

    def serve(name: str) -> Any:
        with cdkit.attach(own, cdkit.load(name), sample_ids=["a"]):
            return own.generate(**inputs, **ASKED)

    workers = [(name, Worker(lambda name=name: serve(name))) for name in names * 2]  # type: ignore[misc]
    for name, worker in workers:
        worker.join(60)
        if worker.error is None:
            assert wanted[name].equal(worker.result)
        else:
            assert isinstance(worker.error, cdkit.CdkitError)
            assert "by another thread" in str(worker.error)
    assert any(worker.error is None for _, worker in workers) and is_stock(own)


def test_the_block_of_a_thread_that_ended_is_replaced(own: Any, make_inputs: MakeInputs) -> None:
    Worker(lambda: cdkit.attach(own, cdkit.load("cmac")).__enter__()).join(60)
    assert not is_stock(own)
    with cdkit.attach(own, cdkit.load("vcd")):
        own.generate(**make_inputs("w1"), **ASKED)
    assert is_stock(own)

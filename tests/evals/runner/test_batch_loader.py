"""A process that loads images and is gone, in whatever way that is seen."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cdkit.errors import CdkitError
from cdkit.evals.runner.loading import BatchLoader

GONE = r"a process that loads images \(--workers\) is gone: it {how}.*kept.*--resume"


class Batches(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self._make(index)


def loaded(make: Callable[[int], Any], workers: int = 1) -> list[Any]:
    return list(
        BatchLoader(
            Batches(make),
            batch_size=None,
            num_workers=workers,
            collate_fn=lambda batch: batch,
            multiprocessing_context="fork" if workers else None,
        )
    )


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order(workers: int) -> None:
    assert loaded(lambda index: torch.full((2,), index), workers)[2].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda index: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL"),
        (lambda index: os._exit(3), "ended with exit code 3"),
    ],
)
def test_a_worker_that_ends(end: Callable[[int], Any], how: str) -> None:
    with pytest.raises(CdkitError, match=GONE.format(how=how)):
        loaded(end)


@pytest.mark.parametrize(
    "seen",
    [
        ConnectionResetError(104, "reset"),
        ConnectionRefusedError(111, "refused"),
        FileNotFoundError(2, "its socket"),
        BrokenPipeError(32, "pipe"),
        EOFError(),
        pickle.UnpicklingError("pickle data was truncated"),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_a_lost_worker_seen_while_it_sends(
    monkeypatch: pytest.MonkeyPatch, seen: Exception
) -> None:
    def fetch(self: Any, timeout: float = 0) -> Any:
        kill_workers()
        raise seen

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", fetch)
    with pytest.raises(CdkitError, match=GONE.format(how="was ended by SIGKILL")):
        loaded(lambda index: index)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr("cdkit.evals.runner.loading.PATIENCE", 0.1)

    def broken(index: int) -> Any:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        loaded(broken, workers)


def test_torchs_handler_of_lost_workers_is_not_used() -> None:
    """It raises in the middle of a model's work."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(BatchLoader(Batches(int), batch_size=None, num_workers=1))
    assert signal.getsignal(signal.SIGCHLD) is before
    assert next(batches) == 0

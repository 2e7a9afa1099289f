"""Fault: which images are asked about, and in which order, follows a directory listing.

`random.shuffle(os.listdir(folder))` gives each machine, and each run, another test set.
"""

import glob
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from amber_files import write_amber, write_amber_generative
from choice_files import write_hallusionbench, write_scienceqa

import cdkit
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.amber_generative import AMBERGenerative
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.hallusionbench import HallusionBench
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.opope import OPOPE
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.benchmarks.scienceqa import ScienceQA
from cdkit.evals.microworld import BenchmarkFiles, write_benchmarks
from cdkit.interfaces.benchmark import Benchmark


class Listing:
    """A directory's entries in an order of its own; what `os.scandir` gives back."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def close(self) -> None:
        pass


@contextmanager
def listed(seed: int) -> Iterator[None]:
    """As on a machine whose file system lists directories in another order."""
    order = random.Random(seed)
    scandir, listdir = os.scandir, os.listdir

    def shuffled(found: list[Any]) -> list[Any]:
        return order.sample(found, len(found))

    def scan(path: Any = ".") -> Listing:
        with scandir(path) as entries:
            return Listing(shuffled(sorted(entries, key=lambda entry: str(entry.name))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", scan)
        # pathlib's, from Python 3.13 on
        globber = getattr(glob, "_StringGlobber", None)
        if globber is not None:
            patch.setattr(globber, "scandir", staticmethod(scan))
        patch.setattr(os, "listdir", lambda path=".": shuffled(sorted(listdir(path))))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    return write_benchmarks(tmp_path_factory.mktemp("bench"), images=8, exam_images=4, seed=5)


BUILD: dict[str, Callable[[BenchmarkFiles], Benchmark]] = {
    "pope": lambda files: POPE(files.pope["popular"]),
    "mme": lambda files: MME(files.mme),
    "amber": lambda files: AMBER(write_amber(files.images.parent / "amber")),
    "amber_generative": lambda files: AMBERGenerative(
        write_amber_generative(files.images.parent / "generative")
    ),
    "opope": lambda files: OPOPE(files.pope["popular"]),
    "hallusionbench": lambda files: HallusionBench(
        write_hallusionbench(files.images.parent / "hallusionbench")
    ),
    "scienceqa": lambda files: ScienceQA(write_scienceqa(files.images.parent / "scienceqa")),
    "chair": lambda files: CHAIR(
        files.synonyms, instances=files.annotations, captions=files.captions
    ),
}


def test_all_benchmarks_are_here() -> None:
    assert set(BUILD) == set(cdkit.BENCHMARKS)


def asked(build: Callable[[], list[str]]) -> list[list[str]]:
    """What is asked on four machines."""
    found = []
    for seed in range(4):
        with listed(seed):
            found.append(build())
    return found


@pytest.mark.parametrize("name", BUILD)
def test_every_machine_asks_the_same(name: str, files: BenchmarkFiles) -> None:
    def ids() -> list[str]:
        benchmark = BUILD[name](files)
        return [*(sample.id for sample in benchmark.samples()), *benchmark.sources()]

    first, *others = asked(ids)
    assert first and all(other == first for other in others)


def test_a_shuffled_listing_is_noticed(files: BenchmarkFiles) -> None:
    """The faulty variants: the listing as it comes, and shuffled once more."""

    def names() -> list[str]:
        return [name for name in os.listdir(files.images) if name.endswith(".png")]

    def globbed() -> list[str]:
        return [path.name for path in Path(files.images).glob("*.png")]

    def mixed() -> list[str]:
        found = names()
        random.shuffle(found)
        return found

    for faulty in (names, globbed, mixed):
        first, *others = asked(faulty)
        assert len(first) > 5 and any(other != first for other in others)
        assert all(sorted(other) == sorted(first) for other in others)


def test_the_presets_have_one_order() -> None:
    first, *others = asked(lambda: list(cdkit.presets()))
    assert all(other == first for other in others)


def test_the_world_is_drawn_alike(tmp_path: Path) -> None:
    """Writing does not list, either."""
    texts = []
    for seed in range(2):
        with listed(seed):
            files = write_benchmarks(tmp_path / str(seed), images=3, exam_images=2, seed=5)
        texts.append(json.dumps([p.read_text() for p in files.pope.values()]))
    assert texts[0] == texts[1]

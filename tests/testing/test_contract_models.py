"""The contract suite over the registered model adapters and benchmarks, on what tests have."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from amber_files import write_amber, write_amber_generative
from choice_files import write_hallusionbench, write_scienceqa
from torch import Tensor

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
from cdkit.testing import check_adapter, check_benchmark


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_tiny_model_with_its_processor(
    dtype: torch.dtype, make_model: Callable[..., Any], processor: Any
) -> None:
    check_adapter(make_model(dtype=dtype), processor=processor)


@pytest.mark.parametrize("question", ["is there a cat ?", "<image> w3 <image> w4 in the image ?"])
def test_given_inputs_need_no_processor(
    question: str, model: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    check_adapter(model, inputs=make_inputs(question))


def test_the_embedded_checkpoint() -> None:
    model, processor = cdkit.load_model("micro")
    check_adapter(model, processor=processor)


def test_every_adapter_declares_what_it_must() -> None:
    for name, adapter in cdkit.ADAPTERS.items():
        assert isinstance(adapter.causal_prefix, bool) and "/" in adapter.example, name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    return write_benchmarks(tmp_path_factory.mktemp("bench"), images=5, exam_images=4, seed=5)


def built(name: str, files: BenchmarkFiles) -> Benchmark:
    """A registered benchmark from the world's files."""
    shown = tuple(sorted(path.name for path in files.images.glob("*.png"))[:2])
    made: dict[str, Callable[[], Benchmark]] = {
        "pope": lambda: POPE(files.pope["popular"], parsers=("strict", "reference", "vcd")),
        "mme": lambda: MME(files.mme),
        "amber": lambda: AMBER(write_amber(files.images.parent, images=shown)),
        "amber_generative": lambda: AMBERGenerative(
            write_amber_generative(files.images.parent / "generative", images=shown)
        ),
        "opope": lambda: OPOPE(files.pope["popular"]),
        "hallusionbench": lambda: HallusionBench(
            write_hallusionbench(files.images.parent, images=shown)
        ),
        "scienceqa": lambda: ScienceQA(science_of(files)),
        "chair": lambda: CHAIR(
            files.synonyms,
            instances=files.annotations,
            captions=files.captions,
            images=files.caption_images,
        ),
    }
    assert name in made, f"{name} needs files here to be checked"
    return made[name]()


def science_of(files: BenchmarkFiles) -> Path:
    """ScienceQA's problems, with a picture of the world for each in the release's folders."""
    path = write_scienceqa(files.images.parent / "scienceqa")
    shown = next(files.images.glob("*.png"))
    for sample in ScienceQA(path).samples():
        place = files.images / sample.image
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shown, place)
    return path


@pytest.mark.parametrize("name", cdkit.BENCHMARKS)
def test_benchmarks(name: str, files: BenchmarkFiles) -> None:
    check_benchmark(built(name, files), images=Path(files.images))

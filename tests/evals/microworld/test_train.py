from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from cdkit.evals.microworld import WORLD
from cdkit.evals.microworld.stages import Stage
from cdkit.evals.microworld.train import QUICK, RECIPE, Recipe, train_micro

TINY = Recipe(
    vision=Stage(12, 8, rate=2e-3, clean=1.0), language=Stage(12, 4, rate=1.5e-3, clean=1.0)
)


@pytest.fixture(autouse=True)
def threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_short_run_learns_and_leaves_a_loadable_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    done = train_micro(tmp_path / "micro", recipe=TINY, progress=True)
    assert done.folder == tmp_path / "micro"
    out, err = capfd.readouterr()
    told = caplog.text + out + err
    assert err.splitlines() == [  # into a pipe: lines, and no bar
        f"{name}: 12 of 12 in {line.split()[-1]}"
        for name, line in zip(("VisionStage", "LanguageStage"), err.splitlines(), strict=True)
    ]
    assert "Tip" not in told and "GPU" not in told  # Lightning's own lines
    for name, losses in done.losses.items():
        assert len(losses) == 12
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), name
    assert set(done.seconds) == {"vision", "language"}
    model = LlavaForConditionalGeneration.from_pretrained(done.folder)
    assert model.dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]  # no leftovers


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    short = replace(
        TINY, vision=replace(TINY.vision, steps=2), language=replace(TINY.language, steps=2)
    )
    runs = [train_micro(tmp_path / name, recipe=short, progress=False) for name in "ab"]
    assert runs[0].losses == runs[1].losses
    weights = [run.folder / "model.safetensors" for run in runs]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other = train_micro(tmp_path / "c", recipe=replace(short, seed=9), progress=False)
    assert other.losses != runs[0].losses


def test_photos_and_text_worsen_as_the_stage_says() -> None:
    stage = Stage(100, 1, rate=1e-3, clean=0.3, worsening=0.2)
    hardness = [stage.hardness(step) for step in (0, 30, 40, 50, 99)]
    assert hardness == pytest.approx([0, 0, 0.5, 1, 1])


def test_quick_is_a_matter_of_steps_only() -> None:
    assert QUICK.seed == RECIPE.seed
    assert QUICK.vision.steps < 100 > QUICK.language.steps
    assert WORLD.degraded > 0

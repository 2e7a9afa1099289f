"""Each of transformers' image-text types runs as models/every_type.toml says, or is refused so."""

import dataclasses
import tomllib
from typing import Any

import pytest

import cdkit
from cdkit.interfaces.model_adapter import ADAPTERS

from . import every_type
from .every_type import METHODS, TYPES
from .generic_tiny import ours_alone  # noqa: F401

TABLE: dict[str, Any] = tomllib.loads(every_type.TABLE.read_text())
QUICK = (
    "glm46v", "kimi_k25", "qwen3_5", "qwen2_5_omni_thinker", "blip", "git", "pix2struct", "pi0",
)  # fmt: skip
TORCH = ("Error", "Traceback", "size of tensor", "has no attribute", "expected", "dimension")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.wide) for name in TYPES],
)
def test_the_table_is_what_runs(name: str) -> None:
    if every_type.is_missing(package := every_type.NEEDS.get(name)):
        pytest.skip(f"its image encoder needs the package {package}, and that torchvision")
    found = dataclasses.asdict(every_type.ran(name))
    assert found == {"refused": {}, "needs": ""} | TABLE[name]


def test_the_table_has_every_type() -> None:
    """A transformers with more or fewer of them needs a new table."""
    assert tuple(TABLE) == TYPES


def test_every_refusal_says_why() -> None:
    for name, found in TABLE.items():
        assert set(found["runs"]) <= set(METHODS)
        missing = {"all"} if not found["runs"] else set(METHODS) - set(found["runs"])
        assert set(found.get("refused", {})) == missing, name
        for why in found.get("refused", {}).values():
            assert why and not any(words in why for words in TORCH), (name, why)
            assert "Did you mean" not in why


def test_what_runs_positions_runs_attention() -> None:
    for found in TABLE.values():
        runs = set(found["runs"])
        assert "attention" in runs or "positions" not in runs
        assert "inputs" in runs or not runs


def test_own_adapters_run_everything() -> None:
    for name in set(ADAPTERS) & set(TABLE) - {"llama4"}:  # which this transformers cannot run
        row = {key: value for key, value in TABLE[name].items() if key != "needs"}
        assert row == {"adapter": "own", "runs": list(METHODS)}


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_several_models_in_one_name_the_one_that_answers(name: str) -> None:
    import transformers
    from torch import nn

    hf: Any = transformers
    inner, _ = every_type.tiny(f"{name}_thinker")

    class Whole(nn.Module):
        """As transformers' class of that name, which is made of checkpoints alone."""

        def __init__(self) -> None:
            super().__init__()
            self.config = hf.AutoConfig.for_model(name)
            self.thinker = inner

    with pytest.raises(
        cdkit.CdkitError, match=r"attach to model\.thinker, and call model\.thinker"
    ):
        cdkit.attach(Whole(), cdkit.load("cmac"))

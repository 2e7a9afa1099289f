"""Files of directions: whose they are, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cdkit
from cdkit.functional.directions import random_directions, shuffled_states
from cdkit.interfaces.vector_file import read_vectors, write_vectors

MANIFEST = {"method": "vti", "model": {"name": "tiny"}}


def decoder(model: Any) -> Any:
    return model.model.language_model


@pytest.fixture
def path(tmp_path: Path, model: Any) -> Path:
    found = tmp_path / "vti.safetensors"
    drawn = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    write_vectors(found, drawn, decoder(model), MANIFEST)
    return found


def check(path: Path, model: Any) -> None:
    text = decoder(model)
    read_vectors(path).check(text, len(text.layers), path)


def test_written_and_read(path: Path, model: Any) -> None:
    found = read_vectors(path)
    assert found.directions.shape == (3, 1, 32) and found.directions.dtype == torch.float64
    assert found.manifest["method"] == "vti" and found.manifest["hidden_size"] == 32
    check(path, model)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no draft is left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_model_in_another_precision(
    path: Path, dtype: torch.dtype, make_model: Callable[..., Any]
) -> None:
    check(path, make_model(dtype=dtype))


def test_a_weight_too_small_for_float16(path: Path, make_model: Callable[..., Any]) -> None:
    small = make_model()
    with torch.no_grad():
        decoder(small).layers[1].mlp.up_proj.weight[0, 0] = 1.03e-6
    write_vectors(path, torch.ones(3, 1, 32), decoder(small), MANIFEST)
    check(path, small.half())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 1}, "whose weights are others than this model's: compute its own"),
        ({"num_hidden_layers": 2}, "whose number of layers is 3, but this model's is 2"),
        ({"hidden_size": 16}, "whose hidden size is 32, but this model's is 16"),
        ({"seed": 1, "dtype": torch.bfloat16}, "whose weights are others"),
    ],
    ids=str,
)
def test_another_model(
    other: dict[str, Any], told: str, path: Path, make_model: Callable[..., Any]
) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        check(path, make_model(**other))


def test_one_changed_weight_is_another_model(path: Path, make_model: Callable[..., Any]) -> None:
    changed = make_model()
    with torch.no_grad():
        decoder(changed).layers[2].mlp.down_proj.weight[0, 0] += 1e-9
    with pytest.raises(cdkit.CdkitError, match="whose weights are others"):
        check(path, changed)


def test_weights_beside_the_model_s_are_another_model(
    path: Path, make_model: Callable[..., Any]
) -> None:
    """As a LoRA has them, which renames what it changes."""
    changed = make_model()
    layer = decoder(changed).layers[0]
    layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj)
    with pytest.raises(cdkit.CdkitError, match="whose weights are others"):
        check(path, changed)


def test_what_is_no_file_of_directions(path: Path, tmp_path: Path, model: Any) -> None:
    other = tmp_path / "other.safetensors"
    with pytest.raises(cdkit.CdkitError, match=r"cannot read the directions in .*other"):
        read_vectors(other)
    other.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(cdkit.CdkitError, match=r"cannot read the directions in .*other"):
        read_vectors(other)
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(cdkit.CdkitError, match="holds no directions: give a file that cdkit vec"):
        read_vectors(other)
    write_vectors(other, torch.full((3, 1, 32), torch.nan), decoder(model), MANIFEST)
    with pytest.raises(cdkit.CdkitError, match="are not finite: compute them anew"):
        read_vectors(other)


def test_random_directions_have_the_lengths_and_angles_of_the_given_ones() -> None:
    given = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, again, other = (random_directions(given, seed=seed) for seed in (0, 0, 1))
    assert one.equal(again) and not torch.allclose(one, other, atol=0.1)
    assert torch.allclose(one @ one.mT, given @ given.mT, atol=1e-12)
    assert not torch.allclose(one[0] @ given[0].T, given[0] @ given[0].T, atol=0.1)
    same = random_directions(given[:1].expand(2, -1, -1), seed=0)
    assert not torch.allclose(same[0], same[1], atol=0.1)  # each layer has its own


def test_shuffled_states() -> None:
    """No truthful caption keeps its hallucinated one, half change places, none is lost."""
    pairs = 9
    states = torch.arange(2 * pairs, dtype=torch.float64).reshape(2, pairs, 1, 1)
    true, false = shuffled_states(states[0], states[1], seed=5)
    together = torch.cat((true, false)).flatten()
    assert together.sort().values.equal(states.flatten())
    assert not bool(((true - false).abs() == pairs).any())
    assert int((true >= pairs).sum()) == int((false < pairs).sum()) == pairs // 2
    again, _ = shuffled_states(states[0], states[1], seed=5)
    other, _ = shuffled_states(states[0], states[1], seed=6)
    assert again.equal(true) and not other.equal(true)
    with pytest.raises(cdkit.CdkitError, match="one pair cannot be shuffled"):
        shuffled_states(states[0][:1], states[1][:1], seed=0)

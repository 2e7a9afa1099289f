"""`cdkit vectors` against a plain recomputation in numpy, from Hugging Face's hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from evals.vectors.demonstrations import PAIRS, PROMPT, write_folder
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.chosen_model import ChosenModel
from cdkit.evals.vectors.compute import compute_vectors
from cdkit.evals.vectors.pairs import read_pairs
from cdkit.interfaces.demonstrations import steering
from cdkit.interfaces.vector_file import VectorFile, read_vectors

Array = npt.NDArray[np.float64]
Compute = Callable[..., VectorFile]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Callable[[int], Image.Image]) -> Path:
    return write_folder(tmp_path_factory.mktemp("vectors") / "pairs", image)


@pytest.fixture
def compute(folder: Path, tmp_path: Path, model: Any, processor: Any) -> Compute:
    def run(method: str, **how: Any) -> VectorFile:
        out = tmp_path / f"{method}.safetensors"
        compute_vectors(
            AnswerEngine(model, processor),
            ChosenModel("tiny"),
            method,
            steering(method).recipe,
            read_pairs(folder),
            out,
            **how,
        )
        return read_vectors(out)

    return run


@torch.no_grad()
def hidden(model: Any, processor: Any, picture: Image.Image, text: str) -> Array:
    """[layers, tokens, hidden], as Hugging Face gives them, without the embeddings."""
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    out = model(**inputs, output_hidden_states=True, return_dict=True)
    return np.stack([state[0].numpy() for state in out.hidden_states[1:]])


def differences(
    model: Any,
    processor: Any,
    image: Callable[[int], Image.Image],
    state: Callable[[Array], Array],
    *,
    gap: str,
    end: str,
) -> Array:
    """[pairs, layers, hidden], truthful less hallucinated."""
    found = []
    for number, captions in enumerate(PAIRS):
        texts = [f"USER: <image>\n{PROMPT} ASSISTANT:{gap}{caption}{end}" for caption in captions]
        one, other = (state(hidden(model, processor, image(number), text)) for text in texts)
        found.append(one - other)
    return np.stack(found)


def test_vti(
    compute: Compute, model: Any, processor: Any, image: Callable[[int], Image.Image]
) -> None:
    """The mean plus the first principal component, over all layers at once."""
    rows = differences(model, processor, image, lambda h: h[:, -1], gap="", end="")
    flat = rows.reshape(len(rows), -1)
    centred = flat - flat.mean(0)
    values, shares = np.linalg.eigh(centred @ centred.T)
    component = shares[:, -1] @ centred / values[-1] ** 0.5
    sign = np.sign(shares[np.abs(shares[:, -1]).argmax(), -1])
    want = (flat.mean(0) + sign * component).reshape(rows.shape[1:])
    have = compute("vti").directions
    assert have.shape == (3, 1, 32) and have.dtype == torch.float64
    np.testing.assert_allclose(have[:, 0].numpy(), want, atol=1e-10)
    assert np.abs(flat.mean(0).reshape(want.shape) - want).max() > 1e-2  # each half is seen
    assert np.abs(component.reshape(want.shape) - want).max() > 1e-2


def test_nullu(
    compute: Compute, model: Any, processor: Any, image: Callable[[int], Image.Image]
) -> None:
    """The first right singular vectors of each layer; each is known up to its sign."""
    rows = differences(model, processor, image, lambda h: h.mean(1), gap=" ", end="</s>")
    have = compute("nullu", rank=3).directions.numpy()
    assert have.shape == (3, 3, 32)
    for layer, directions in enumerate(have):
        _, vectors = np.linalg.eigh(rows[:, layer].T @ rows[:, layer])
        largest = vectors[:, ::-1][:, :3].T
        np.testing.assert_allclose(
            directions[:, :, None] * directions[:, None, :],
            largest[:, :, None] * largest[:, None, :],
            atol=1e-9,
        )


def test_the_manifest(compute: Compute, folder: Path) -> None:
    found = compute("nullu", rank=2, shuffle=3).manifest
    assert found["method"] == "nullu" and found["rank"] == found["directions"] == 2
    assert found["layers"] == 3 and found["hidden_size"] == 32 and found["shuffled"] == 3
    assert found["data"] == {"sha256": read_pairs(folder).sha256, "pairs": 6}
    assert found["prompts"] == {"first": PROMPT, "different": 1}
    assert found["model"]["type"] == "llava" and found["model"]["dtype"] == "float64"


def test_shuffled_pairs_give_other_directions(compute: Compute) -> None:
    for method in ("vti", "nullu"):
        plain, one, again = (compute(method, shuffle=seed) for seed in (None, 0, 0))
        assert one.directions.equal(again.directions)
        cosine = torch.cosine_similarity(plain.directions[:, 0], one.directions[:, 0], dim=-1)
        assert float(cosine.abs().max()) < 0.9


def test_a_rank_beyond_the_data(compute: Compute) -> None:
    with pytest.raises(CdkitError, match=r"the rank is 7, .* 6 pairs have 6 directions: give a"):
        compute("nullu", rank=7)
    with pytest.raises(CdkitError, match=r"rank is 6, .* less their mean, have 5 directions"):
        compute("vti", rank=6)

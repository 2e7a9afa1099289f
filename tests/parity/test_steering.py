"""VTI and Nullu against plain hooks on the stock model, and against edited weights.

shengliu66/VTI, commit bb5dfee (vti_utils/llm_layers.py), and Ziwei-Zheng/Nullu, commit dcb1ef4
(utils/halluedit.py): the formulas are written out here, from no code of the project.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.vector_file import write_vectors

QUESTIONS = ("is there a cat ?", "is there a dog in the image ?")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
}
Edit = Callable[[int, Tensor], Tensor]
MakeInputs = Callable[..., dict[str, Tensor]]


def directions(method: str) -> Tensor:
    drawn = torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if method == "vti":
        return drawn[:, :, :1].mT * 5  # of any length
    orthonormal: Tensor = torch.linalg.qr(drawn).Q
    return orthonormal.mT


@pytest.fixture
def files(tmp_path: Path, model: Any) -> dict[str, Path]:
    found = {}
    for method in ("vti", "nullu"):
        found[method] = tmp_path / f"{method}.safetensors"
        manifest = {"method": method, "model": {"name": "tiny"}}
        write_vectors(found[method], directions(method), model.model.language_model, manifest)
    return found


@contextmanager
def hooked(model: Any, edit: Edit) -> Iterator[None]:
    """The stock model, the output of each feed-forward network edited."""

    def of(layer: int) -> Callable[..., Tensor]:
        return lambda module, given, output: edit(layer, output)

    layers = model.model.language_model.layers
    hooks = [each.mlp.register_forward_hook(of(i)) for i, each in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def turned(layer: int, output: Tensor, strength: float = 0.9) -> Tensor:
    """VTI's edit."""
    vector = directions("vti")[layer, 0]
    length = output.pow(2).sum(-1, keepdim=True).sqrt()
    moved = output / length + 0.1 * strength * vector / vector.pow(2).sum().sqrt()
    return moved / moved.pow(2).sum(-1, keepdim=True).sqrt() * length


def projected(layer: int, output: Tensor, *, rank: int = 4, first: int = 2) -> Tensor:
    """Nullu's, term by term; layers 2 of 3 on are the second half of the depth."""
    if layer < first:
        return output
    for vector in directions("nullu")[layer, :rank]:
        output = output - (output @ vector)[..., None] * vector
    return output


CASES: dict[str, tuple[str, dict[str, Any], Edit]] = {
    "vti": ("vti", {}, turned),
    "vti 2": ("vti", {"strength": 2.0}, lambda i, x: turned(i, x, 2.0)),
    "nullu": ("nullu", {}, projected),
    "nullu 2": ("nullu", {"rank": 2}, lambda i, x: projected(i, x, rank=2)),
    "all layers": ("nullu", {"layers": [0, 1]}, lambda i, x: projected(i, x, first=0)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_plain_hooks(
    case: str,
    mode: str,
    files: dict[str, Path],
    model: Any,
    make_inputs: MakeInputs,
    logits_of: Callable[..., Tensor],
) -> None:
    name, parameters, edit = CASES[case]
    inputs = make_inputs(*QUESTIONS)
    with hooked(model, edit):
        want = logits_of(model, inputs, **MODES[mode])
    method = cdkit.load(name, vectors=files[name], **parameters)
    for optimize in (True, False):
        with cdkit.attach(model, method, optimize=optimize):
            have = logits_of(model, inputs, **MODES[mode])
        torch.testing.assert_close(have, want, rtol=0, atol=1e-9)
    stock = logits_of(model, inputs, **MODES[mode])
    assert stock.shape != want.shape or float((stock - want).abs().max()) > 1e-3


def test_nullu_equals_edited_weights(
    files: dict[str, Path],
    make_model: Callable[..., Any],
    model: Any,
    make_inputs: MakeInputs,
    logits_of: Callable[..., Tensor],
) -> None:
    """As its authors do it: the weights that write the output lose the directions."""
    edited = make_model()
    for layer, vectors in enumerate(directions("nullu")):
        if layer >= 2:
            weight = edited.model.language_model.layers[layer].mlp.down_proj.weight
            with torch.no_grad():
                null = torch.eye(32, dtype=torch.float64) - vectors.T @ vectors
                weight.copy_((weight.T @ null).T)
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load("nullu", vectors=files["nullu"])):
        have = logits_of(model, inputs)
    torch.testing.assert_close(have, logits_of(edited, inputs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["vti", "nullu", "vti_random", "nullu_random"])
def test_strength_0_is_the_stock_model_to_the_bit(
    name: str, model: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    """Then it needs no file either."""
    method = cdkit.load(name, strength=0.0)
    assert method.is_identity and not method.lacks
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, method):
        have = logits_of(model, inputs)
    assert have.equal(logits_of(model, inputs))


@pytest.mark.parametrize("name", ["vti", "nullu"])
def test_random_directions_are_a_control(
    name: str,
    files: dict[str, Path],
    model: Any,
    make_inputs: MakeInputs,
    logits_of: Callable[..., Tensor],
) -> None:
    """Seeded, other than the file's, and the same from any file of such directions or none."""
    inputs = make_inputs(*QUESTIONS)
    asked: list[dict[str, Any]] = [
        {"random_seed": 0},
        {"random_seed": 0, "vectors": files[name]},
        {"random_seed": 1},
        {"vectors": files[name]},
    ]
    found = []
    for parameters in asked:
        with cdkit.attach(model, cdkit.load(name, **parameters)):
            found.append(logits_of(model, inputs, max_new_tokens=1))
    free, of_file, other, steered = found
    torch.testing.assert_close(free, of_file, rtol=0, atol=1e-9)
    for one in (other, steered):
        assert float((one - free).abs().max()) > 1e-3


def refuses(model: Any, method: cdkit.Method) -> str:
    with pytest.raises(cdkit.CdkitError) as refusal:
        cdkit.attach(model, method)
    return str(refusal.value)


def test_a_file_is_needed_and_must_be_the_right_one(
    files: dict[str, Path], model: Any, make_model: Callable[..., Any]
) -> None:
    told = refuses(model, cdkit.load("vti"))
    assert "vti cannot run yet: vti needs a file of directions: compute it (cdkit vectors" in told
    swapped = refuses(model, cdkit.load("vti", vectors=files["nullu"]))
    assert "holds the directions of nullu: compute those of vti (cdkit vectors vti" in swapped
    more = refuses(model, cdkit.load("nullu", rank=5, vectors=files["nullu"]))
    assert "holds 4 directions a layer, but nullu is set to use 5: set fewer" in more
    other = refuses(make_model(1), cdkit.load("vti", vectors=files["vti"]))
    assert "whose weights are others than this model's" in other
    absent = refuses(model, cdkit.load("vti", vectors="nowhere.safetensors"))
    assert "cannot read the directions in nowhere.safetensors" in absent
    wide = refuses(model, cdkit.load("nullu_random", rank=33))
    assert "33 directions are more than the 32 numbers of a state" in wide


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"strength": -1.0}, "strength must be a finite number >= 0"),
        ({"random_seed": -1}, "random_seed must be a whole number from 0 on"),
        ({"layers": [0.5, 0.5]}, "0 <= first < last <= 1"),
        ({"rank": 0}, "rank must be a whole number from 1 on"),
        ({"vectors": 3}, "vectors must be of type Path"),
    ],
    ids=str,
)
def test_bad_parameters(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load("nullu", **parameters)

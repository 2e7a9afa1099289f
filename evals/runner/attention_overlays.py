"""The image attention and the masks of methods' branches: one traced step a question and method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.reports.results import AttentionOverlay, LayerHeatmap
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.questions import Question
from cdkit.generation.trace import Step
from cdkit.methods.method import Method

NOTHING = "No attention is drawn over the pictures"


def changes_attention(method: Method) -> bool:
    """Whether the method changes attention, or moves the positions that it depends on."""
    changed = any(branch.attention for branch in method.live_branches)
    moved = method.calibrator is not None and not method.calibrator.is_identity
    return bool(changed or method.interventions or moved)


@torch.inference_mode()
def collect_overlays(
    engine: AnswerEngine, methods: Mapping[str, Method], questions: Sequence[Question]
) -> dict[Question, AttentionOverlay] | str:
    """Trace the image attention and the masks of methods on questions.

    They are those of the row that predicts the answer's first token, averaged over heads. The same
    attention is given once, under the first method and branch that has it.

    Args:
        engine: The model.
        methods: Name -> method.
        questions: The questions.

    Returns:
        Question -> attention by method, branch and layer; or a text that says why there is
        none.
    """
    if not cdkit.adapter_for(engine.model).square_grid:
        kind = engine.model.config.model_type
        return f"{NOTHING}: the image tokens of {kind} are no one grid of the picture."
    found: dict[Question, AttentionOverlay] = {}
    try:
        for question in questions:
            seen = _overlay(engine, methods, question)
            if isinstance(seen, str):
                return seen
            found[question] = seen
    except CdkitError as error:
        return f"{NOTHING}: {error}"
    return found


def _overlay(
    engine: AnswerEngine, methods: Mapping[str, Method], question: Question
) -> AttentionOverlay | str:
    inputs = engine.inputs([question])
    heatmaps: list[LayerHeatmap] = []
    for name, method in methods.items():
        heatmaps += _new(name, engine.first_trace(method, inputs, [question.sample_id]), heatmaps)
    tokens = heatmaps[0].layers.shape[1]
    picture = _picture(engine, inputs, tokens)
    side = math.isqrt(tokens)
    if picture is None or side**2 != tokens or picture.shape[0] != picture.shape[1]:
        return f"{NOTHING}: its {tokens} image tokens are no square grid of one square picture."
    return AttentionOverlay(picture, (side, side), tuple(heatmaps))


def _new(name: str, step: Step, before: Sequence[LayerHeatmap]) -> list[LayerHeatmap]:
    """Attention that no heatmap before shows, and every mask."""
    known = [heatmap.layers for heatmap in before if not heatmap.mask]
    found: list[LayerHeatmap] = []
    for branch, layers in step.image_attention.items():
        weights = _stacked(layers, _mean_over_heads)
        if not any(np.allclose(weights, other, atol=1e-5) for other in known):
            known.append(weights)
            found.append(LayerHeatmap(name, f"{branch}: attention", mask=False, layers=weights))
        mask = _stacked(step.mask[branch], _last_row)
        if mask.any():
            found.append(LayerHeatmap(name, f"{branch}: mask", mask=True, layers=mask))
    return found


def _stacked(layers: Mapping[int, Tensor], reduced: Any) -> Float[np.ndarray, "layers image"]:
    """A row a layer, of the one prompt there is."""
    rows = [reduced(layers[layer]) for layer in sorted(layers)]
    return torch.stack(rows).float().cpu().numpy()


def _mean_over_heads(weights: Float[Tensor, "one heads image"]) -> Float[Tensor, " image"]:
    return weights[0].float().mean(dim=0)


def _last_row(mask: Tensor) -> Float[Tensor, " image"]:
    """The share of heads whose cell is masked, in the row that predicts."""
    return mask[0, :, -1].float().mean(dim=0)


def _picture(
    engine: AnswerEngine, inputs: Mapping[str, Tensor], tokens: int
) -> UInt8[np.ndarray, "height width 3"] | None:
    """The pixels as the model was given them, their normalisation taken back."""
    images = getattr(engine.processor, "image_processor", None)
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if mean is None or std is None:
        return None
    adapter = cdkit.adapter_for(engine.model)
    (pixels,) = adapter.split_pixels(engine.model, inputs, [tokens])
    if pixels.shape[0] != 1:
        return None
    scale, shift = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    shown = pixels[0].float().cpu() * scale + shift
    return (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

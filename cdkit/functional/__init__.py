"""The maths of methods as pure functions of tensors; plug-ins and the engine use the same ones."""

from cdkit.functional.directions import difference_subspace, shifted_component
from cdkit.functional.logits import (
    add_or_contrast,
    check_beta,
    contrast,
    implausible_everywhere,
    plausible,
    scale_difference,
)
from cdkit.functional.noise import (
    DIFFUSION_STEPS,
    cell_normal,
    cell_uniform,
    diffuse,
    diffusion_signal_kept,
)
from cdkit.functional.rope import Rotary, rotate

__all__ = [
    "DIFFUSION_STEPS",
    "Rotary",
    "add_or_contrast",
    "cell_normal",
    "cell_uniform",
    "check_beta",
    "contrast",
    "difference_subspace",
    "diffuse",
    "diffusion_signal_kept",
    "implausible_everywhere",
    "plausible",
    "rotate",
    "scale_difference",
    "shifted_component",
]

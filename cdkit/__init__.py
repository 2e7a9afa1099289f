"""Contrastive decoding for large vision-language models, under their own `generate`.

Names are imported when they are first used: torch and transformers take seconds, which
`cdkit --help` need not wait for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdkit.adapter import ADAPTERS as ADAPTERS
    from cdkit.adapter import ModelAdapter as ModelAdapter
    from cdkit.adapter import adapter_for as adapter_for
    from cdkit.attachment import Attachment as Attachment
    from cdkit.attachment import attach as attach
    from cdkit.benchmark import BENCHMARKS as BENCHMARKS
    from cdkit.benchmark import Benchmark as Benchmark
    from cdkit.calibrator import CALIBRATORS as CALIBRATORS
    from cdkit.calibrator import PositionCalibrator as PositionCalibrator
    from cdkit.combiner import COMBINERS as COMBINERS
    from cdkit.combiner import READOUTS as READOUTS
    from cdkit.combiner import LayerReadout as LayerReadout
    from cdkit.combiner import LogitCombiner as LogitCombiner
    from cdkit.config import load as load
    from cdkit.config import presets as presets
    from cdkit.errors import CdkitError as CdkitError
    from cdkit.logits import contrast as contrast
    from cdkit.logits import plausible as plausible
    from cdkit.loop import LOOPS as LOOPS
    from cdkit.loop import DecodingLoop as DecodingLoop
    from cdkit.method import Branch as Branch
    from cdkit.method import Method as Method
    from cdkit.pretrained import load_model as load_model
    from cdkit.registry import Registry as Registry
    from cdkit.rotary import Rotary as Rotary
    from cdkit.schedule import SCHEDULES as SCHEDULES
    from cdkit.schedule import AlphaSchedule as AlphaSchedule
    from cdkit.segment import CrossModalSegment as CrossModalSegment
    from cdkit.segment import ImageColumns as ImageColumns
    from cdkit.strategy import DISTORTIONS as DISTORTIONS
    from cdkit.strategy import INTERVENTIONS as INTERVENTIONS
    from cdkit.strategy import AttentionDistortion as AttentionDistortion
    from cdkit.strategy import DistortionStrategy as DistortionStrategy
    from cdkit.strategy import FeatureDistortion as FeatureDistortion
    from cdkit.strategy import Intervention as Intervention
    from cdkit.strategy import PixelDistortion as PixelDistortion
    from cdkit.strategy import Prompt as Prompt
    from cdkit.strategy import PromptDistortion as PromptDistortion

__version__ = "0.1.0"

_HOMES = {
    "adapter": ("ADAPTERS", "ModelAdapter", "adapter_for"),
    "attachment": ("Attachment", "attach"),
    "benchmark": ("BENCHMARKS", "Benchmark"),
    "calibrator": ("CALIBRATORS", "PositionCalibrator"),
    "combiner": ("COMBINERS", "READOUTS", "LayerReadout", "LogitCombiner"),
    "config": ("load", "presets"),
    "logits": ("contrast", "plausible"),
    "loop": ("LOOPS", "DecodingLoop"),
    "errors": ("CdkitError",),
    "method": ("Branch", "Method"),
    "pretrained": ("load_model",),
    "registry": ("Registry",),
    "rotary": ("Rotary",),
    "schedule": ("SCHEDULES", "AlphaSchedule"),
    "segment": ("CrossModalSegment", "ImageColumns"),
    "strategy": (
        "DISTORTIONS",
        "INTERVENTIONS",
        "AttentionDistortion",
        "DistortionStrategy",
        "FeatureDistortion",
        "Intervention",
        "PixelDistortion",
        "Prompt",
        "PromptDistortion",
    ),
}
"""Module -> its public names; a test holds it to the imports that type checkers read."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"cdkit.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'cdkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names)})

"""Contrastive decoding for large vision-language models, under their own `generate`.

Names are imported when they are first used: torch and transformers take seconds, which
`cdkit --help` need not wait for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cdkit import _old_names

if TYPE_CHECKING:
    from cdkit.attachment import Attachment as Attachment
    from cdkit.attachment import attach as attach
    from cdkit.errors import CdkitError as CdkitError
    from cdkit.errors import CdkitWarning as CdkitWarning
    from cdkit.errors import PromptError as PromptError
    from cdkit.errors import check_choice as check_choice
    from cdkit.errors import check_finite as check_finite
    from cdkit.explanation.explain import explain as explain
    from cdkit.explanation.explanation import Explanation as Explanation
    from cdkit.functional.logits import contrast as contrast
    from cdkit.functional.logits import plausible as plausible
    from cdkit.functional.rope import Rotary as Rotary
    from cdkit.interfaces.adapter_lookup import HOW_TO_ADD as HOW_TO_ADD
    from cdkit.interfaces.adapter_lookup import adapter_for as adapter_for
    from cdkit.interfaces.benchmark import BENCHMARKS as BENCHMARKS
    from cdkit.interfaces.benchmark import Benchmark as Benchmark
    from cdkit.interfaces.benchmark import check_limit as check_limit
    from cdkit.interfaces.benchmark import sha256 as sha256
    from cdkit.interfaces.cache_names import CACHE as CACHE
    from cdkit.interfaces.cache_names import OLD_CACHE as OLD_CACHE
    from cdkit.interfaces.cell_change import CellChange as CellChange
    from cdkit.interfaces.chat_prompt import chat_prompt as chat_prompt
    from cdkit.interfaces.combiner import COMBINERS as COMBINERS
    from cdkit.interfaces.combiner import LogitCombiner as LogitCombiner
    from cdkit.interfaces.combiner import State as State
    from cdkit.interfaces.constraint import CONSTRAINTS as CONSTRAINTS
    from cdkit.interfaces.constraint import Constraint as Constraint
    from cdkit.interfaces.constraint import OnEmpty as OnEmpty
    from cdkit.interfaces.decoding_loop import LOOPS as LOOPS
    from cdkit.interfaces.decoding_loop import MODES as MODES
    from cdkit.interfaces.decoding_loop import DecodingContext as DecodingContext
    from cdkit.interfaces.decoding_loop import DecodingLoop as DecodingLoop
    from cdkit.interfaces.decoding_loop import Hypothesis as Hypothesis
    from cdkit.interfaces.decoding_loop import Mode as Mode
    from cdkit.interfaces.decoding_loop import Rows as Rows
    from cdkit.interfaces.demonstrations import DirectionRecipe as DirectionRecipe
    from cdkit.interfaces.demonstrations import DirectionSteering as DirectionSteering
    from cdkit.interfaces.demonstrations import check_steering as check_steering
    from cdkit.interfaces.depth import EVERY_LAYER as EVERY_LAYER
    from cdkit.interfaces.depth import Depth as Depth
    from cdkit.interfaces.depth import check_depth as check_depth
    from cdkit.interfaces.depth import layers_within as layers_within
    from cdkit.interfaces.distortion import DISTORTIONS as DISTORTIONS
    from cdkit.interfaces.distortion import AttentionDistortion as AttentionDistortion
    from cdkit.interfaces.distortion import DistortionStrategy as DistortionStrategy
    from cdkit.interfaces.distortion import FeatureDistortion as FeatureDistortion
    from cdkit.interfaces.distortion import Modified as Modified
    from cdkit.interfaces.distortion import PixelDistortion as PixelDistortion
    from cdkit.interfaces.distortion import Prompt as Prompt
    from cdkit.interfaces.distortion import PromptDistortion as PromptDistortion
    from cdkit.interfaces.image_readout import ImageLogits as ImageLogits
    from cdkit.interfaces.image_readout import ImageReadout as ImageReadout
    from cdkit.interfaces.image_readout import ImageStep as ImageStep
    from cdkit.interfaces.intervention import INTERVENTIONS as INTERVENTIONS
    from cdkit.interfaces.intervention import Intervention as Intervention
    from cdkit.interfaces.model_adapter import ADAPTERS as ADAPTERS
    from cdkit.interfaces.model_adapter import GENERIC_ADAPTERS as GENERIC_ADAPTERS
    from cdkit.interfaces.model_adapter import ModelAdapter as ModelAdapter
    from cdkit.interfaces.model_adapter import SeesAhead as SeesAhead
    from cdkit.interfaces.model_adapter import UnmatchedPixelsError as UnmatchedPixelsError
    from cdkit.interfaces.part import Part as Part
    from cdkit.interfaces.position_calibrator import CALIBRATORS as CALIBRATORS
    from cdkit.interfaces.position_calibrator import NOTHING_KNOWN as NOTHING_KNOWN
    from cdkit.interfaces.position_calibrator import ImageGrid as ImageGrid
    from cdkit.interfaces.position_calibrator import PositionCalibrator as PositionCalibrator
    from cdkit.interfaces.position_calibrator import PositionContext as PositionContext
    from cdkit.interfaces.readout import READOUTS as READOUTS
    from cdkit.interfaces.readout import LayerReadout as LayerReadout
    from cdkit.interfaces.sample import Answer as Answer
    from cdkit.interfaces.sample import Sample as Sample
    from cdkit.interfaces.schedule import SCHEDULES as SCHEDULES
    from cdkit.interfaces.schedule import AlphaSchedule as AlphaSchedule
    from cdkit.interfaces.schedule import Signals as Signals
    from cdkit.interfaces.segment import CrossModalSegment as CrossModalSegment
    from cdkit.interfaces.segment import ImageColumns as ImageColumns
    from cdkit.interfaces.segment import Scope as Scope
    from cdkit.interfaces.segment import check_scope as check_scope
    from cdkit.interfaces.selector import SELECTORS as SELECTORS
    from cdkit.interfaces.selector import CellSelector as CellSelector
    from cdkit.interfaces.state_intervention import STATE_INTERVENTIONS as STATE_INTERVENTIONS
    from cdkit.interfaces.state_intervention import EditedRows as EditedRows
    from cdkit.interfaces.state_intervention import ModelFacts as ModelFacts
    from cdkit.interfaces.state_intervention import PromptStates as PromptStates
    from cdkit.interfaces.state_intervention import Site as Site
    from cdkit.interfaces.state_intervention import StateIntervention as StateIntervention
    from cdkit.interfaces.state_intervention import StateReading as StateReading
    from cdkit.interfaces.state_intervention import StateSegment as StateSegment
    from cdkit.interfaces.stream_readout import AttentionRow as AttentionRow
    from cdkit.interfaces.stream_readout import StreamReadout as StreamReadout
    from cdkit.interfaces.stream_readout import Sublayers as Sublayers
    from cdkit.interfaces.tally import OfSums as OfSums
    from cdkit.interfaces.tally import Tally as Tally
    from cdkit.interfaces.tally import share as share
    from cdkit.interfaces.token_grid import TokenGrid as TokenGrid
    from cdkit.interfaces.token_grid import frame_grid as frame_grid
    from cdkit.interfaces.video_layout import VideoLayout as VideoLayout
    from cdkit.methods.branch import ORIGINAL as ORIGINAL
    from cdkit.methods.branch import Branch as Branch
    from cdkit.methods.composition import compose as compose
    from cdkit.methods.method import Method as Method
    from cdkit.methods.presets import load as load
    from cdkit.methods.presets import presets as presets
    from cdkit.pretrained import example_image as example_image
    from cdkit.pretrained import load_model as load_model
    from cdkit.probing.observed_layers import ObservedLayers as ObservedLayers
    from cdkit.probing.observed_layers import observe_layers as observe_layers
    from cdkit.probing.rotary import layers_that_rotate as layers_that_rotate
    from cdkit.probing.rotary import probe_rotary as probe_rotary
    from cdkit.registry import Registry as Registry
    from cdkit.registry import UnknownNameError as UnknownNameError

__version__ = "0.1.0"

_old_names.install()

_HOMES = {
    "attachment": (
        "Attachment",
        "attach",
    ),
    "errors": (
        "CdkitError",
        "CdkitWarning",
        "PromptError",
        "check_choice",
        "check_finite",
    ),
    "explanation.explain": ("explain",),
    "explanation.explanation": ("Explanation",),
    "functional.logits": (
        "contrast",
        "plausible",
    ),
    "functional.rope": ("Rotary",),
    "interfaces.adapter_lookup": (
        "HOW_TO_ADD",
        "adapter_for",
    ),
    "interfaces.benchmark": (
        "BENCHMARKS",
        "Benchmark",
        "check_limit",
        "sha256",
    ),
    "interfaces.cache_names": (
        "CACHE",
        "OLD_CACHE",
    ),
    "interfaces.cell_change": ("CellChange",),
    "interfaces.chat_prompt": ("chat_prompt",),
    "interfaces.combiner": (
        "COMBINERS",
        "LogitCombiner",
        "State",
    ),
    "interfaces.constraint": (
        "CONSTRAINTS",
        "Constraint",
        "OnEmpty",
    ),
    "interfaces.decoding_loop": (
        "LOOPS",
        "MODES",
        "DecodingContext",
        "DecodingLoop",
        "Hypothesis",
        "Mode",
        "Rows",
    ),
    "interfaces.demonstrations": (
        "DirectionSteering",
        "DirectionRecipe",
        "check_steering",
    ),
    "interfaces.depth": (
        "EVERY_LAYER",
        "Depth",
        "check_depth",
        "layers_within",
    ),
    "interfaces.distortion": (
        "DISTORTIONS",
        "AttentionDistortion",
        "DistortionStrategy",
        "FeatureDistortion",
        "PixelDistortion",
        "Prompt",
        "PromptDistortion",
        "Modified",
    ),
    "interfaces.image_readout": (
        "ImageLogits",
        "ImageReadout",
        "ImageStep",
    ),
    "interfaces.intervention": (
        "INTERVENTIONS",
        "Intervention",
    ),
    "interfaces.model_adapter": (
        "ADAPTERS",
        "GENERIC_ADAPTERS",
        "ModelAdapter",
        "SeesAhead",
        "UnmatchedPixelsError",
    ),
    "interfaces.part": ("Part",),
    "interfaces.position_calibrator": (
        "CALIBRATORS",
        "NOTHING_KNOWN",
        "ImageGrid",
        "PositionCalibrator",
        "PositionContext",
    ),
    "interfaces.readout": (
        "READOUTS",
        "LayerReadout",
    ),
    "interfaces.sample": (
        "Sample",
        "Answer",
    ),
    "interfaces.schedule": (
        "SCHEDULES",
        "AlphaSchedule",
        "Signals",
    ),
    "interfaces.segment": (
        "CrossModalSegment",
        "ImageColumns",
        "Scope",
        "check_scope",
    ),
    "interfaces.selector": (
        "SELECTORS",
        "CellSelector",
    ),
    "interfaces.state_intervention": (
        "STATE_INTERVENTIONS",
        "EditedRows",
        "ModelFacts",
        "PromptStates",
        "Site",
        "StateIntervention",
        "StateReading",
        "StateSegment",
    ),
    "interfaces.stream_readout": (
        "AttentionRow",
        "StreamReadout",
        "Sublayers",
    ),
    "interfaces.tally": (
        "OfSums",
        "Tally",
        "share",
    ),
    "interfaces.token_grid": (
        "TokenGrid",
        "frame_grid",
    ),
    "interfaces.video_layout": ("VideoLayout",),
    "methods.branch": (
        "ORIGINAL",
        "Branch",
    ),
    "methods.composition": ("compose",),
    "methods.method": ("Method",),
    "methods.presets": (
        "load",
        "presets",
    ),
    "pretrained": (
        "example_image",
        "load_model",
    ),
    "probing.observed_layers": (
        "ObservedLayers",
        "observe_layers",
    ),
    "probing.rotary": (
        "layers_that_rotate",
        "probe_rotary",
    ),
    "registry": (
        "Registry",
        "UnknownNameError",
    ),
}
"""Module -> its public names; a test holds it to the imports that type checkers read."""


def __getattr__(name: str) -> Any:
    if name == "__all__":  # else `from cdkit import *` gives what happens to be imported already
        return sorted(n for names in _HOMES.values() for n in names)
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"cdkit.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'cdkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names alone, for completion."""
    return sorted({"__doc__", "__version__", *(n for names in _HOMES.values() for n in names)})

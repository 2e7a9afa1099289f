"""What plug-ins were written against keeps working, with a warning that says what to write now."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from torch import Tensor

import cdkit
from cdkit.interfaces.part import Part
from cdkit.models.layouts.standard import StandardAdapter
from cdkit.testing import check_calibrator, check_combiner, check_strategy
from cdkit.testing.example_segments import example_segment

OLD: dict[str, str] = {
    "cdkit.adapter": "ADAPTERS GENERIC_ADAPTERS HOW_TO_ADD SeesAhead ModelAdapter adapter_for "
    "UnmatchedPixelsError chat_prompt layers_that_turn unwrap",
    "cdkit.benchmark": "BENCHMARKS OfSums Answer Benchmark Sample Tally check_limit sha256 share",
    "cdkit.calibrator": "CALIBRATORS PositionCalibrator",
    "cdkit.combiner": "COMBINERS OnEmpty READOUTS State LayerReadout LogitCombiner",
    "cdkit.config": "PRESET_GROUP build load override parse_method parse_part presets",
    "cdkit.depth": "Depth EVERY_LAYER check_depth layers_within",
    "cdkit.logits": "check_beta contrast implausible_everywhere plausible scale_difference",
    "cdkit.loop": "LOOPS MODES Mode Decoding DecodingLoop Found Rows",
    "cdkit.method": "ORIGINAL REGISTRIES Branch Method describe kind_of",
    "cdkit.noise": "DIFFUSION_STEPS cell_normal cell_uniform diffuse diffusion_signal_kept "
    "generator purpose_of stream",
    "cdkit.part": "Part",
    "cdkit.rotary": "Rotary probe_rotary rotate",
    "cdkit.schedule": "SCHEDULES AlphaSchedule Signals",
    "cdkit.segment": "Scope CrossModalSegment ImageColumns check_scope softmax",
    "cdkit.strategy": "DISTORTIONS INTERVENTIONS Touch AttentionDistortion DistortionStrategy "
    "FeatureDistortion Intervention PixelDistortion Prompt PromptDistortion",
    "cdkit.trace": "Step Trace make_trace",
    "cdkit.models.standard": "StandardAdapter",
    "cdkit.models.tiles": "",
    "cdkit.strategies.value_mean_mask": "ValueMeanMask",
    "cdkit.strategies.contrast": "Contrast",
}


@pytest.mark.parametrize("module", OLD)
def test_a_former_module_has_what_it_had(module: str) -> None:
    sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning, match=rf"^{module} is now cdkit\.") as told:
        old = importlib.import_module(module)
    assert told[0].filename != importlib.import_module("cdkit._old_names").__file__
    for name in OLD[module].split():
        assert getattr(old, name) is not None
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        old.nothing  # noqa: B018


def test_renamed_classes_are_the_present_ones() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cdkit.loop import Decoding, Found  # type: ignore[import-not-found]
        from cdkit.segment import ImageColumns  # type: ignore[import-not-found]
        from cdkit.strategy import Touch  # type: ignore[import-not-found]
    assert (Found, Decoding) == (cdkit.Hypothesis, cdkit.DecodingContext)
    assert ImageColumns is cdkit.ImageColumns and Touch == cdkit.Modified


def test_names_that_never_were_are_not_found() -> None:
    for name in ("cdkit.strategi", "cdkit.models.nothing", "cdkit.strategies.nothing"):
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(name)


def test_import_stays_cheap() -> None:
    code = "import cdkit, sys; print('torch' in sys.modules, 'cdkit.registry' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_former_attributes_of_an_attention_distortion() -> None:
    with pytest.warns(DeprecationWarning) as told:

        @dataclass(frozen=True)
        class Old(cdkit.AttentionDistortion):
            """Written before."""

            touches: ClassVar[frozenset[cdkit.Modified]] = frozenset({"logits"})

            @property
            def whole_prompt(self) -> bool:
                return False

            def distort(self, segment: cdkit.CrossModalSegment) -> cdkit.CrossModalSegment:
                return segment

    assert [str(warning.message).split(": ")[1] for warning in told] == [
        "whole_prompt is now called needs_whole_prompt",
        "touches is now called modifies",
    ]
    made: Any = Old
    old = made()
    assert old.modifies == {"logits"} and old.needs_whole_prompt is False
    _kept["old"] = Old
    made.__reduce__ = lambda self: (_made, ("old",))
    check_strategy(old)


def test_former_attributes_of_a_combiner() -> None:
    with pytest.warns(DeprecationWarning) as told:

        @dataclass(frozen=True)
        class Old(cdkit.LogitCombiner):
            """Written before."""

            by_step: ClassVar[bool] = False
            on_empty: str = "raise"

            @property
            def idle(self) -> bool:
                return True

            def reads(self, name: str) -> bool:
                return False

            def settled(self, original: Tensor) -> None:
                return None

            def combine(
                self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: Any
            ) -> Any:
                return original, state

    words = {str(warning.message).split(": ")[1] for warning in told}
    assert {
        "reads is now called uses",
        "by_step is now called stateful",
        "idle is now called is_identity",
        "settled has no effect any more; delete it",
        "on_empty has no effect any more; it belongs to the method's constraint",
    } == words
    made: Any = Old
    old = made()
    assert old.stateful is False and old.is_identity and not old.uses("x")
    _kept["combiner"] = Old
    made.__reduce__ = lambda self: (_made, ("combiner",))
    check_combiner(old)


def test_former_attributes_of_a_calibrator_that_are_fields() -> None:
    with pytest.warns(DeprecationWarning):

        @dataclass(frozen=True)
        class Old(cdkit.PositionCalibrator):
            """Written before."""

            steady: bool = True
            idle: bool = True

            def calibrate(self, positions: Tensor, image_index: Tensor) -> Tensor:
                return positions.double()

    made: Any = Old
    assert made().constant_after_prompt and made().is_identity
    assert not made(steady=False).constant_after_prompt
    _kept["calibrator"] = Old
    made.__reduce__ = lambda self: (_made, ("calibrator",))
    check_calibrator(made())


def test_former_attributes_of_an_adapter() -> None:
    with pytest.warns(DeprecationWarning, match="levels is now called deepstack_features"):

        class Old(StandardAdapter):
            """Written before."""

            def levels(self, output: Any) -> Any:
                return [output]

    assert Old.deepstack_features is Old.levels


def test_former_attributes_of_what_a_part_is_given() -> None:
    segment = example_segment()
    for given, old, new in (
        (segment, "carried", "layer_state"),
        (segment, "predicts", "predicts_next"),
        (segment, "hidden", "pruned"),
        (segment.image, "streams", "rng_keys"),
        (segment.image, "once", "cached"),
    ):
        with pytest.warns(DeprecationWarning, match=rf"\.{old} is now called {new}"):
            value = getattr(given, old)
        assert value is getattr(given, new) or value == getattr(given, new)


def test_a_part_of_another_kind_may_use_the_words() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Free(Part):
            reads: int = 1
            touches: int = 2
            idle: bool = True

    assert not hasattr(Free, "uses")


_kept: dict[str, type] = {}


def _made(key: str) -> Any:
    return _kept[key]()

"""What the presets promise by their parts alone, so that a test runs over all of them unnamed."""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit import layers_within
from cdkit.methods.part_kinds import describe
from cdkit.testing.example_segments import example_segment, example_segments


def shape(name: str) -> object:
    """What of a preset the engine can tell: its parts, and their parameters but for the numbers."""

    def told(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(told, value))
        if isinstance(value, dict):  # an inner part has a place of its own
            return value["kind"]
        return value != 0 if isinstance(value, float) else value

    return tuple(
        (place, tuple((key, told(value)) for key, value in describe(part).items()))
        for place, part in cdkit.load(name).parts()
    )


RUNNABLE = [name for name in cdkit.presets() if not cdkit.load(name).lacks]
"""The presets that need nothing more, such as a file, to run."""
ALL = list({shape(name): name for name in reversed(RUNNABLE)}.values())[::-1]
"""One preset of each shape: presets that differ in numbers alone are one to the engine."""
ACTIVE = [name for name in ALL if not cdkit.load(name).is_identity]
GREEDY = [name for name in ALL if "greedy" in cdkit.load(name).modes]
ACTIVE_GREEDY = [name for name in GREEDY if name in ACTIVE]
CHIEF = ("cmac", "vcd", "icd", "vdd", "vaf", "gift", "vista", "spin", "dola", "plain")
"""One of each kind: attention, pixels, prompt, two branches, interventions, memory, states, layers,
none."""


def in_turn(cases: Iterable[Any], turn: int) -> list[Any]:
    """Names of presets, or tuples that begin with one, as parameters.

    Those of the chief presets and, by turn, of half of the others are quick; the rest is `wide`.
    With four turns in four tests each preset is quick in two of them.
    """
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    names = dict.fromkeys(row[0] for row in rows)
    quick = {name for place, name in enumerate(names) if (place - turn) % 4 < 2}
    return [
        pytest.param(*row, marks=() if row[0] in quick.union(CHIEF) else pytest.mark.wide)
        for row in rows
    ]


def decoded(method: cdkit.Method, **asked: Any) -> dict[str, Any]:
    """`asked`, or beams where the method is defined for no greedy decoding."""
    return asked if "greedy" in method.modes else {**asked, "num_beams": 3}


@cache  # asked hundreds of times while tests are collected
def by_row(name: str) -> cdkit.Method:
    """The preset; with a threshold for each row where it has one for the whole prompt."""
    method = cdkit.load(name)
    scoped = any("scope" in vars(part) for _, part in method.parts())
    return cdkit.load(name, scope="row") if scoped else method


def opened(method: cdkit.Method) -> cdkit.Method:
    """The method with every threshold so high that its parts act in each row."""
    return method.with_parts(
        lambda place, part: (
            replace(part, thresholds=(1e6,)) if hasattr(part, "thresholds") else part
        )
    )


def splits_prompts(method: cdkit.Method) -> bool:
    """Whether the prompt may go in by chunks."""
    inputs = any(branch.prompt or branch.feature for branch in method.branches)
    reads = (part.reads for part in method.live_state_interventions)
    inputs = inputs or any("prompt_states" in own or "image_features" in own for own in reads)
    inputs = inputs or isinstance(method.readout, cdkit.ImageReadout)
    return not inputs and not method.whole_prompt_parts


def runs_uncached(method: cdkit.Method) -> bool:
    return not method.whole_prompt_parts and not method.stateful and method.loop is None


def takes_plain_calls(method: cdkit.Method) -> bool:
    return not method.stateful and method.loop is None


def depends_on_the_prompts_end(method: cdkit.Method) -> bool:
    """Whether a token of the answer is treated otherwise when it stands in a prompt."""
    inputs = any(branch.feature for branch in method.branches)
    inputs = inputs or any("prompt_states" in p.reads for p in method.live_state_interventions)
    return inputs or bool(method.interventions or method.whole_prompt_parts)


def keeps_the_first_token(method: cdkit.Method) -> bool:
    """Whether it changes generated rows alone, so that the first step is the stock model's: its
    interventions are tried out."""
    others = (*method.live_branches, *method.live_state_interventions)
    if others or method.calibrator or method.readout or not method.interventions:
        return False
    for part in method.interventions:
        passed_on: dict[Hashable, Tensor] = {}  # from layer to layer of one call
        segments = example_segments()
        for layer in layers_within(part.layers, len(segments)):
            segment = segments[layer]
            of_prompt = segment.prompt[:, None, :, None]
            after = part.intervene(replace(segment, layer_state=passed_on))
            pairs = ((after.logits, segment.logits), (after.text_logits, segment.text_logits))
            if any(((a != b) & of_prompt).any() for a, b in pairs) or after.replaced is not None:
                return False
    return True


def draws_noise(method: cdkit.Method) -> bool:
    """Whether its answers depend on the seed: its distortions are tried out under two."""
    return any(_draws(part) for branch in method.live_branches for part in branch.distortions)


def _draws(part: cdkit.DistortionStrategy) -> bool:
    first, second = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    match part:
        case cdkit.PixelDistortion():
            pixels = torch.rand(1, 3, 12, 12)
            return not part.distort(pixels, generator=first).equal(
                part.distort(pixels, generator=second)
            )
        case cdkit.FeatureDistortion():
            inputs = torch.rand(9, 4), torch.rand(3, 9)
            return not part.distort(*inputs, generator=first).equal(
                part.distort(*inputs, generator=second)
            )
        case cdkit.AttentionDistortion():
            segment = example_segment()
            other = replace(
                segment,
                image=replace(segment.image, rng_keys=segment.image.rng_keys + 1, answer_cache={}),
            )
            one, two = part.distort(segment), part.distort(other)
            pairs = ((one.replaced, two.replaced), (one.replacement, two.replacement))
            return any(a is not None and b is not None and not a.equal(b) for a, b in pairs)
    return False

"""CMAC on hybrid decoders, against a stock model that computes each text anew.

The stock model is given another attention function, which does what CMAC's distorted branch does;
whatever has a recurrent state is the model's own, and no cache, batch or engine is there.
"""

import copy
import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import cdkit

from . import every_type
from .generic_tiny import told
from .modes import CLOSE, generated
from .tiny import IMAGE, THETA, Inputs

ONE_AXIS: dict[str, dict[str, tuple[float, float]]] = {
    "lfm2_vl": {"full_attention": (THETA, 1.0)},
    "lfm3_vl": {"sliding_attention": (20.0, 1.0), "full_attention": (THETA, 0.5)},
    "minicpm_ocr": {"full_attention": (THETA, 0.5)},
    "minicpmv4_6": {"full_attention": (THETA, 0.5)},
}
"""Type of a layer -> base of its rotary frequencies, share of a head that turns."""
NAMES = (*ONE_AXIS, "minicpmv4_7", "qwen4_exp", "glm5_next", "nemotron_h_omni")
NARROW = ("qwen4_exp", "glm5_next", "nemotron_h_omni")
"""Their experts do not run in float64; states and angles of the others are float32, too."""
ALPHA, BETA, GAMMA = 3.0, 0.05, 2.0


class Recomputed:
    """The attention of one branch over one whole text, in place of the model's own."""

    name = "recomputed_by_the_test"

    def __init__(self, name: str) -> None:
        self.turns = ONE_AXIS.get(name, {})
        self.image = torch.empty(0, dtype=torch.bool)
        self.prompt = 0
        self.distorted = self.calibrated = False
        self.cells = 0
        """How many cells of the last text were masked."""

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any,
        scaling: float | None = None, sliding_window: int | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        copies = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(copies, dim=1)[0] for x in (key, value))
        query, rows = query[0], torch.arange(query.shape[2])
        scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        ahead = rows[None, :] > rows[:, None]
        if sliding_window is not None:
            ahead = ahead | (rows[:, None] - rows[None, :] >= sliding_window)
        segment = ~self.image[:, None] & self.image[None, :] & (rows[None, :] < rows[:, None])
        logits = query @ key.mT * scale
        if self.calibrated:
            steps = torch.where(self.image, 1 / GAMMA, 1.0).double()
            moved = steps.cumsum(0) - (rows + 1)
            turned = [self.turn(x, moved, module) for x in (query, key)]
            logits = torch.where(segment, turned[0] @ turned[1].mT * scale, logits)
        masked = torch.zeros_like(logits, dtype=torch.bool)
        if self.distorted:
            ends = [0, *range(self.prompt, len(rows) + 1)]  # one group, then each row alone
            for first, end in itertools.pairwise(ends):
                of_group = segment & ((rows >= first) & (rows < end))[:, None]
                if of_group.any():
                    masked |= of_group & (logits > logits[:, of_group].mean())
            self.cells += int(masked.sum())
        weights = logits.masked_fill(ahead, -torch.inf).softmax(-1)
        mean = value[:, self.image].mean(1, keepdim=True)
        out = (weights * ~masked) @ value + (weights * masked).sum(-1, keepdim=True) * mean
        return out.transpose(0, 1)[None], None

    def turn(self, x: Tensor, by: Tensor, module: Any) -> Tensor:
        """Turn heads that were turned already on by an angle that makes the rest."""
        kinds = module.config.layer_types
        base, share = self.turns[kinds[module.layer_idx]]
        head = x.shape[-1]
        pairs = int(head * share) // 2
        proportional = len(self.turns) > 1 and share < 1
        width = head if proportional else 2 * pairs
        frequencies = base ** -(torch.arange(0, 2 * pairs, 2, dtype=x.dtype) / width)
        if proportional:  # pairs reach over the whole head, and the late ones stand still
            frequencies = torch.nn.functional.pad(frequencies, (0, head // 2 - pairs))
        angles = by[:, None] * frequencies
        turning, rest = x[..., :width], x[..., width:]
        one, two = turning.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((one * cos - two * sin, two * cos + one * sin, rest), dim=-1)


class ByHand(LogitsProcessor):
    """CMAC in a stock `generate`."""

    def __init__(self, model: Any, attention: Recomputed, given: Inputs, calibrated: bool) -> None:
        self.model, self.attention, self.given = model, attention, given
        self.calibrated = calibrated
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = []
        for ids in input_ids:
            clear, other = (self.next(ids[None], distorted) for distorted in (False, True))
            self.seen.append((clear, other))
            allowed = clear.softmax(-1) >= BETA * clear.softmax(-1).max()
            rows.append(((1 + ALPHA) * clear - ALPHA * other).masked_fill(~allowed, -torch.inf))
        return torch.stack(rows).log_softmax(-1).to(scores.dtype)

    def next(self, ids: Tensor, distorted: bool) -> Tensor:
        own, prompt = self.attention, self.given["input_ids"].shape[1]
        given = self.given | {"input_ids": ids}
        given["attention_mask"] = torch.ones_like(ids)
        if "mm_token_type_ids" in given:
            given["mm_token_type_ids"] = (ids == IMAGE).long()
        own.image, own.prompt = ids[0] == IMAGE, prompt
        own.distorted, own.calibrated = distorted, self.calibrated
        with torch.no_grad():
            logits: Tensor = self.model(**given, use_cache=False).logits
        return logits[0, -1].double()


@pytest.fixture
def attention(name: str) -> Iterator[Recomputed]:
    own = Recomputed(name)
    AttentionInterface.register(own.name, own)
    AttentionMaskInterface.register(own.name, eager_mask)
    yield own


CASES = [(name, "cmac_imd") for name in NAMES] + [(name, "cmac") for name in ONE_AXIS]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_cmac_is_two_plain_calls_a_step(name: str, preset: str, attention: Recomputed) -> None:
    """Logits of both branches at each step; that of modes and batches is in test_hybrid.py."""
    model, inputs = every_type.tiny(name)
    assert inputs is not None
    wide = torch.float32 if name in NARROW else torch.float64
    model = copy.deepcopy(model).to(wide)
    given: Any = {
        key: value.to(wide) if value.is_floating_point() else value for key, value in inputs.items()
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        given["mm_token_type_ids"] = (given["input_ids"] == IMAGE).long()
    told(model, given, preset)
    with cdkit.attach(model, cdkit.load(preset, alpha=ALPHA, beta=BETA), trace=("logits",)) as ours:
        found = generated(model, given)
    other = copy.deepcopy(model)
    other.config.get_text_config()._attn_implementation = attention.name
    by_hand = ByHand(other, attention, given, preset == "cmac")
    wanted = generated(model, given, logits_processor=LogitsProcessorList([by_hand]))
    assert found.sequences.equal(wanted.sequences)
    effects = []
    for step, logits in zip(ours.trace.steps, by_hand.seen, strict=True):
        for branch, own in zip(("original", "distorted"), logits, strict=True):
            torch.testing.assert_close(step.logits[branch][0].double(), own, **CLOSE)
        effects.append((logits[0] - logits[1]).abs().max().item())
    assert attention.cells > 0 and min(effects) > 100 * CLOSE["atol"]

"""Run cdkit under `generate`, compute the same with the reference, and compare."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import cell_normal, stream

from .decoders import Decoder
from .reference import Result, Rules, contrast, run
from .tiny import IMAGE, LAYERS, Sample, WordTokenizer, batch, sequence

SEED = 7


def signal_kept(step: int, beta_max: float = 5e-3) -> float:
    """The share of variance left by VCD's sigmoid schedule, term by term."""
    kept = 1.0
    for index in range(step + 1):
        x = -6 + 12 * index / 999
        kept *= 1 - (1 / (1 + math.exp(-x)) * (beta_max - 1e-5) + 1e-5)
    return kept


CALIBRATED = Rules(calibrated=True, gamma=2.0)
IMD = replace(CALIBRATED, distortion="mean_dim")
CUT = replace(CALIBRATED, distortion="cut")
NOISE = replace(CALIBRATED, distortion="noise", kept=signal_kept(999, 0.01))
CMAC_CASES: Mapping[str, tuple[cdkit.Method, Rules]] = {
    "cmac": (cdkit.load("cmac"), IMD),
    "cmac-row": (cdkit.load("cmac", scope="row"), replace(IMD, scope="row")),
    "cmac-head": (cdkit.load("cmac", scope="head"), replace(IMD, scope="head")),
    "cmac-gamma1": (cdkit.load("cmac", gamma=1.0), replace(IMD, gamma=1.0)),
    "cmac-text-step": (
        cdkit.load("cmac", gamma=3.0, text_step=2 / 3),
        replace(IMD, gamma=3.0, text_step=2 / 3),
    ),
    "cmac_imd": (cdkit.load("cmac_imd"), replace(IMD, calibrated=False)),
    "imccd": (
        cdkit.load("imccd"),
        replace(IMD, distortion="mean_scalar", gamma=3.0, first_gap="unit"),
    ),
    "attention_mask": (cdkit.load("attention_mask"), CUT),
    "attention_mask-row": (cdkit.load("attention_mask", scope="row"), replace(CUT, scope="row")),
    "value_noise": (cdkit.load("value_noise"), NOISE),
    "value_noise-head": (
        cdkit.load("value_noise", scope="head", step=300, beta_max=0.02),
        replace(NOISE, scope="head", kept=signal_kept(300, 0.02)),
    ),
}
"""Methods with one distorted branch, and the rules of that branch; the original one's have no
distortion."""


@dataclass(frozen=True, eq=False)
class Ran:
    """What cdkit computed."""

    run: cdkit.Attachment
    tokens: Tensor
    """(rows, steps): what was generated."""
    output: Any

    @property
    def logits(self) -> dict[str, Tensor]:
        """Branch, or "combined", -> (rows, steps, vocab)."""
        steps = self.run.trace.steps
        stacked = {
            name: torch.stack([step.logits[name] for step in steps], 1) for name in steps[0].logits
        }
        combined = [step.combined for step in steps if step.combined is not None]
        return stacked | {"combined": torch.stack(combined, 1)}


def generate(
    model: Any,
    method: cdkit.Method,
    samples: Sequence[Sample],
    *,
    pad: int = 0,
    steps: int = 4,
    optimize: bool | Collection[str] = True,
    trace: Sequence[str] = ("logits",),
    seed: int = SEED,
    **how: Any,
) -> Ran:
    """The model's own `generate` with the method attached, greedy unless `how` says otherwise."""
    inputs = batch(samples, pad=pad)
    with cdkit.attach(
        model,
        method,
        processor=WordTokenizer(),
        seed=seed,
        sample_ids=[one.name for one in samples],
        trace=trace,
        optimize=optimize,
    ) as attached:
        output = model.generate(
            **inputs,
            **{"max_new_tokens": steps, "do_sample": False, **how},
            output_logits=True,
            return_dict_in_generate=True,
        )
    return Ran(attached, output.sequences[:, inputs["input_ids"].shape[1] :], output)


def value_noise(one: Sample, *, kv_heads: int, seed: int = SEED) -> Tensor:
    """The normal numbers of the value noise: of (seed, sample), layer, image token, head, dim."""
    places = torch.tensor([place for place, token in enumerate(one.ids) if token == IMAGE])
    return cell_normal(
        torch.tensor(stream(seed, one.name)),
        torch.arange(LAYERS)[:, None, None, None],
        places[:, None, None],
        torch.arange(kv_heads)[:, None],
        torch.arange(16),
    )


Rewrite = Callable[[Sample], Sample]


@torch.no_grad()
def reference(
    model: Any,
    samples: Sequence[Sample],
    generated: Sequence[Sequence[int]],
    rules: Rules,
    *,
    rewrite: Rewrite = lambda one: one,
    seed: int = SEED,
) -> list[Result]:
    """A branch by the reference: each sample alone, its prompt and pixels changed by `rewrite`."""
    decoder = Decoder.of(model)
    sequences = []
    for one, tokens in zip(samples, generated, strict=True):
        own, noise = rewrite(one), None
        if rules.distortion == "noise":
            noise = value_noise(one, kv_heads=decoder.kv_heads, seed=seed)
        sequences.append(sequence(model, own.ids, tokens, own.pixels, noise=noise))
    return run(decoder, sequences, rules)


def next_logits(results: Sequence[Result], steps: int) -> Tensor:
    """(rows, steps, vocab): what predicts the last `steps` tokens, the first from the prompt."""
    return torch.stack([result.logits[-steps:] for result in results])


def branch_logits(
    model: Any,
    samples: Sequence[Sample],
    tokens: Tensor,
    rules: Rules,
    *,
    rewrite: Rewrite = lambda one: one,
    seed: int = SEED,
) -> Tensor:
    """(rows, steps, vocab) of a branch that is fed the generated `tokens` (rows, steps)."""
    results = reference(model, samples, tokens[:, :-1].tolist(), rules, rewrite=rewrite, seed=seed)
    return next_logits(results, tokens.shape[1])


def beta_of(method: cdkit.Method) -> float:
    """Of the method's plausibility constraint; 0 where it has none."""
    constraint: Any = method.constraint
    return 0.0 if constraint is None else float(constraint.beta)


def one_branch(
    model: Any, samples: Sequence[Sample], tokens: Tensor, rules: Rules, method: cdkit.Method
) -> dict[str, Tensor]:
    """All logits of a method with one distorted branch, by the reference."""
    combiner: Any = method.combiner
    original = branch_logits(model, samples, tokens, replace(rules, distortion="none"))
    distorted = branch_logits(model, samples, tokens, rules)
    combined = contrast(original, [distorted], [combiner.alpha], beta_of(method))
    return {"original": original, "distorted": distorted, "combined": combined}


def assert_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, within: float
) -> None:
    """The same names, shapes and ruled-out tokens, and every number within `within`."""
    assert actual.keys() == expected.keys(), f"{sorted(actual)} against {sorted(expected)}"
    for name, have in actual.items():
        want = expected[name]
        assert have.shape == want.shape, f"{name}: {have.shape} against {want.shape}"
        assert not have.isnan().any() and not want.isnan().any(), f"{name}: not a number"
        finite = have.isfinite()
        assert torch.equal(finite, want.isfinite()), f"{name}: other tokens are ruled out"
        worst = (have - want)[finite].abs().max().item()
        assert worst <= within, f"{name}: off by {worst}"


def tolerance(method: cdkit.Method, base: float = 1e-8) -> float:
    return base * (1 + 2 * float(getattr(method.combiner, "alpha", 0.0)))

"""A whole bench: build the model, check the variants against each other, measure them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.runner.progress import Stages
from cdkit.evals.speed.agreement import STEPS, Agreement, Reference, check_agreement, reference
from cdkit.evals.speed.bench_results import BenchSection
from cdkit.evals.speed.bench_runners import BenchRunner
from cdkit.evals.speed.bench_settings import DEEP, MICRO, BenchSettings
from cdkit.evals.speed.counting import count_calls
from cdkit.evals.speed.machine import machine
from cdkit.evals.speed.measuring import measure, steps_of
from cdkit.evals.speed.profiling import profiles
from cdkit.evals.speed.prompts import Prompts, make_prompts
from cdkit.evals.speed.shapes import build, weight_bytes
from cdkit.evals.speed.variants import (
    PLAIN_NAME,
    VariantName,
    check_benchable,
    check_has_variant,
    runners,
)
from cdkit.methods.method import Method
from cdkit.pretrained import device_of


@dataclass(frozen=True, eq=False)
class Bench:
    """What was asked, where it ran, and what was found."""

    settings: BenchSettings
    machine: dict[str, Any]
    """As `machine.machine` describes it; `device`, `dtype` and `threads` as they were."""
    started: str
    sections: tuple[BenchSection, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "machine": self.machine,
            "started": self.started,
            "sections": [section.to_dict() for section in self.sections],
        }


def dtype_of(settings: BenchSettings) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.float32 if settings.shape in (MICRO, DEEP) else torch.bfloat16
    found: torch.dtype = getattr(torch, settings.dtype)
    return found


def bench(
    settings: BenchSettings, stages: Stages, tell: Callable[[str], None] = lambda line: None
) -> Bench:
    """Everything that can be refused is, before the model is built; `tell` is given where it is."""
    device, dtype = device_of(settings.device), dtype_of(settings)
    methods = {name: cdkit.load(name) for name in settings.methods}
    for method in methods.values():
        check_benchable(method)
        check_has_variant(method, settings.measured)
    before = torch.get_num_threads()
    try:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        facts = machine(device, dtype)
        model, processor = build(settings, dtype, device)
        tell(settings.chosen.told(model))
        sections = [
            _section(settings, model, processor, methods, batch, length, stages)
            for batch in settings.batches
            for length in settings.text_tokens
        ]
    except torch.OutOfMemoryError:
        raise CdkitError(
            f"{device} ran out of memory: use a smaller --batch, fewer tokens, or --dtype bfloat16"
        ) from None
    finally:
        torch.set_num_threads(before)
    return Bench(settings, facts, started, tuple(sections))


def _section(
    settings: BenchSettings,
    model: Any,
    processor: Any,
    methods: dict[str, Method],
    batch: int,
    text_tokens: int,
    stages: Stages,
) -> BenchSection:
    new_tokens = settings.new_tokens
    prompts = make_prompts(
        model, batch=batch, text_tokens=text_tokens, new_tokens=new_tokens, seed=settings.seed
    )
    made = runners(model, processor, methods, prompts, settings.measured)
    stage = f"batch {batch}, {text_tokens} text tokens: check"
    stages.start(stage, len(methods) + 1)
    agreements, one_candidate = _checked(
        model,
        processor,
        methods,
        prompts,
        made,
        steps=min(STEPS, new_tokens),
        advance=lambda: stages.advance(stage),
    )
    measured = f"batch {batch}, {text_tokens} text tokens: measure"
    stages.start(measured, len(made) * steps_of(settings.rounds))
    taken = measure(
        made,
        model,
        new_tokens=new_tokens,
        rounds=settings.rounds,
        advance=lambda: stages.advance(measured),
    )
    counted = f"batch {batch}, {text_tokens} text tokens: count"
    stages.start(counted, len(made))
    calls = count_calls(
        made, model.device, new_tokens=new_tokens, advance=lambda: stages.advance(counted)
    )
    found = {}
    if settings.profile:
        profiled = f"batch {batch}, {text_tokens} text tokens: profile"
        stages.start(profiled, len(made))
        found = profiles(
            made, model.device, new_tokens=new_tokens, advance=lambda: stages.advance(profiled)
        )
    return BenchSection(
        batch=batch,
        text_tokens=text_tokens,
        image_tokens=int(model.config.image_seq_length),
        new_tokens=new_tokens,
        weights=weight_bytes(model),
        taken=taken,
        calls=calls,
        agreements=agreements,
        one_candidate=one_candidate,
        profiles=found,
    )


def _checked(
    model: Any,
    processor: Any,
    methods: Mapping[str, Method],
    prompts: Prompts,
    made: Mapping[VariantName, BenchRunner],
    *,
    steps: int,
    advance: Callable[[], None],
) -> tuple[dict[VariantName, Agreement], dict[str, float]]:
    """How well each variant agrees, and how often one candidate is left; nothing else is kept."""
    layers = int(model.config.text_config.num_hidden_layers)

    def expected_of(method: Method) -> Reference:
        return reference(model, method, prompts, processor=processor, layers=layers, steps=steps)

    plain = expected_of(cdkit.load(PLAIN))
    agreements = check_agreement(plain, {PLAIN_NAME: made[PLAIN_NAME]})
    advance()
    one_candidate = {}
    for name, method in methods.items():
        expected = expected_of(method)
        one_candidate[name] = expected.one_candidate
        agreements |= check_agreement(expected, {n: r for n, r in made.items() if n.method == name})
        advance()
    return agreements, one_candidate

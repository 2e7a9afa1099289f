"""How a task of a harness wants its answers decoded, read from its `generation_kwargs`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import StoppingCriteria

from cdkit.errors import CdkitError, check_temperature
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.modes import BEAM, GREEDY, SAMPLE
from cdkit.registry import unknown

LIMIT = 1024
"""Tokens of an answer whose task names no limit."""
BLANK_LINE = "\n\n"
"""lmms-eval writes this stop string into every task that names none, and its own LLaVA and
Qwen2.5-VL models pass over it: it ends few-shot examples, and would cut an answer off after its
first paragraph."""
PASSED = ("early_stopping", "length_penalty", "min_new_tokens", "no_repeat_ngram_size",
          "repetition_penalty")  # fmt: skip
"""Go to Hugging Face's `generate` as they are."""
IDLE = {
    "image_aspect_ratio": "the processor of the checkpoint decides it",
    "seed": "the model argument seed decides it",
    "skip_special_tokens": "special tokens are never part of an answer",
}
"""Given by some tasks to other models; why they have no effect here."""
READ = ("do_sample", "max_gen_toks", "max_new_tokens", "num_beams", "stop_sequences", "temperature",
        "top_k", "top_p", "until")  # fmt: skip


@dataclass(frozen=True)
class TaskDecoding:
    """What a task asks of `generate`; equal ones may share a batch.

    `temperature` is None where nothing is sampled; `passed` goes to `generate` as it is.
    """

    limit: int = LIMIT
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    until: tuple[str, ...] = ()
    passed: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("max_new_tokens", self.limit), ("num_beams", self.num_beams)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise CdkitError(f"{name} must be a whole number >= 1, got {count!r}")
        if self.temperature is None:
            return
        check_temperature("temperature", self.temperature)
        if self.num_beams > 1:
            raise CdkitError(
                "sampling within a beam search is not supported: let the task search "
                "(do_sample=false) or draw (num_beams=1), such as by --gen_kwargs"
            )
        if self.top_k is not None and self.top_k < 1:
            raise CdkitError(f"top_k must be a whole number >= 1, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p < 1:
            raise CdkitError(f"top_p must lie in (0, 1], got {self.top_p!r}")

    @property
    def mode(self) -> str:
        """ "greedy", "sample" or "beam"."""
        if self.num_beams > 1:
            return BEAM
        return GREEDY if self.temperature is None else SAMPLE


def read_decoding(given: Mapping[str, Any], *, stop_at_blank_line: bool = False) -> TaskDecoding:
    """A task's `generation_kwargs`; a CdkitError for a key that would be passed over in silence.

    As Hugging Face has it, `do_sample=false` wins over a temperature; without `do_sample` a
    temperature above 0 samples, as in lmms-eval's own models.
    """
    known = {*READ, *PASSED, *IDLE}
    for name in given:
        if name not in known:
            raise CdkitError(f"generation_kwargs: {unknown('option', name, known)}")
    value = {name: setting for name, setting in given.items() if setting is not None}
    temperature = value.get("temperature", 1.0 if value.get("do_sample") else 0)
    sampled = value.get("do_sample", temperature != 0)
    if sampled and temperature == 0:
        raise CdkitError(
            "generation_kwargs has do_sample=true with temperature 0: set do_sample=false for "
            "greedy decoding, or a temperature above 0"
        )
    top_p = value.get("top_p", 1)
    return TaskDecoding(
        limit=value.get("max_new_tokens", value.get("max_gen_toks", LIMIT)),
        temperature=temperature if sampled else None,
        top_k=value.get("top_k") if sampled else None,
        top_p=top_p if sampled and top_p != 1 else None,
        num_beams=value.get("num_beams", 1),
        until=tuple(
            stop
            for name in ("until", "stop_sequences")
            for stop in _texts(name, value.get(name, ()))
            if stop and (stop_at_blank_line or stop != BLANK_LINE)
        ),
        passed=tuple((name, value[name]) for name in PASSED if name in value),
    )


def check_decoding(protocol: Protocol, decoding: TaskDecoding) -> None:
    """Raise where a task decodes in another way than a protocol says.

    The harness decides how an answer is decoded, so a protocol's decoding is not applied in
    silence, and not passed over either.
    """
    wanted = protocol.settings("decoding")
    if not wanted:
        return
    here = {
        "mode": decoding.mode,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "beams": decoding.num_beams if decoding.mode == BEAM else None,
    }
    if wanted["mode"] == SAMPLE:
        wanted = {"temperature": 1.0} | wanted
    if wanted.get("top_p") == 1:
        del wanted["top_p"]  # keeps all tokens
    if wanted["mode"] == BEAM:
        wanted = {"beams": decoding.num_beams} | wanted
    if all(here[name] == wanted.get(name) for name in here):
        return
    of_mode: Mapping[str, Mapping[str, Any]] = {
        GREEDY: {"do_sample": False, "num_beams": 1},
        SAMPLE: {"do_sample": True, "temperature": wanted.get("temperature"), "num_beams": 1},
        BEAM: {"do_sample": False, "num_beams": max(2, wanted.get("beams", 2))},
    }
    options = {**of_mode[str(wanted["mode"])]}
    options |= {name: wanted[name] for name in ("top_k", "top_p") if name in wanted}
    asked = ",".join(f"{name}={value}" for name, value in options.items())
    raise CdkitError(
        f"the protocol {protocol.name} decodes by {_listed(wanted)}, and the task by "
        f"{_listed({n: v for n, v in here.items() if v is not None})}: add --gen_kwargs {asked}"
    )


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first place where any stop string begins."""
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class StopsAt(StoppingCriteria):
    """Ends a row as soon as `cut` would shorten its text.

    Hugging Face's own `stop_strings` takes a vocabulary apart, which fails on tokenizers that do
    not know every letter.
    """

    def __init__(
        self, until: Sequence[str], prompt_length: int, decode: Callable[[list[int]], str]
    ) -> None:
        self.until, self.prompt_length, self.decode = tuple(until), prompt_length, decode

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: Any, **kwargs: Any) -> Any:
        """A boolean for each row."""
        texts = [self.decode(row) for row in input_ids[:, self.prompt_length :].tolist()]
        stopped = [cut(text, self.until) != text for text in texts]
        return torch.tensor(stopped, device=input_ids.device)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise CdkitError(f"{name} must be a string or a list of strings, got {value!r}")
    return texts

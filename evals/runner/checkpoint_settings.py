"""What a checkpoint's generation_config decides of a run's answers: read, recorded and told."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

LOGITS: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "watermarking_config": (),
    "guidance_scale": (1,),
}
"""Settings that move logits, and the values (beside None) with which they move none."""
END: Mapping[str, tuple[Any, ...]] = {"stop_strings": ([],), "max_time": ()}
"""Settings that may end an answer early."""
SEARCH: Mapping[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "early_stopping": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "constraints": (),
    "force_words_ids": ([],),
}
"""Settings that move a beam search alone."""
FROM_CHECKPOINT = (*LOGITS, *END, *SEARCH, "eos_token_id")
"""All that a run leaves to the checkpoint; the rest it passes to `generate` itself."""


def recorded(config: object) -> dict[str, Any]:
    """The settings of a generation config that decide answers, as plain data; unset ones not."""
    found = {name: getattr(config, name, None) for name in FROM_CHECKPOINT}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def moving(config: object, *, beams: bool = False) -> dict[str, Any]:
    """Those of them that are not neutral: without them answers may be others.

    Args:
        config: A model's generation config.
        beams: Whether a beam search reads it; greedy search and sampling do not read `SEARCH`.
    """
    neutral = {**LOGITS, **END, **(SEARCH if beams else {})}
    given = recorded(config)
    return {n: given[n] for n, values in neutral.items() if n in given and given[n] not in values}


def notes(model: Any, *, beams: bool, kept: str = "") -> list[str]:
    """Lines for the user: what the checkpoint's settings change; `kept` says where it stands."""
    found = moving(model.generation_config, beams=beams)
    if not found:
        return []
    words = ", ".join(f"{name} {_short(value)}" for name, value in found.items())
    return [
        f"note: the checkpoint's generation_config sets {words}; every answer follows it{kept}. "
        "Take it out of generation_config.json to decode without it"
    ]


def stored(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The recorded settings of a checkpoint that is not loaded; empty where there is none."""
    load: Any = GenerationConfig.from_pretrained
    source: dict[str, Any] = {"revision": revision or "main"}
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"config_file_name": "config.json", "_from_model_config": True},
    )
    for way in ways:  # as `from_pretrained` of a model looks for it
        try:
            return recorded(load(name, **way, **source))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return {}


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except TypeError:  # a bias has tuples of tokens as keys
        return str(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."

"""Any family with positions of one axis: cdkit under `generate` against the reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import cdkit

from .against import CMAC_CASES, assert_close, beta_of, tolerance
from .decoders import Decoder, form_of, numbered
from .reference import Rules, Sequence_, contrast, run

STEPS = 3
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Prompt:
    """The arguments of `generate` for one prompt, without padding."""

    given: Inputs
    counts: tuple[int, ...]
    """How many image tokens each of its images has."""
    image_token: int


@dataclass(frozen=True, eq=False)
class Ran:
    """What cdkit computed for prompts side by side, and what the reference needs for the same."""

    logits: dict[str, Tensor]
    """Branch, or "combined", -> (rows, steps, vocab)."""
    decoder: Decoder
    sequences: list[Sequence_]
    case: str


def decoder_of(model: Any) -> Decoder:
    """The decoder's weights; what is not in them the family's form says."""
    adapter = cdkit.adapter_for(model)
    decoder: Any = adapter.decoder(model)
    reader: Any = adapter.lm_module(model)
    config = decoder.config
    rope = config.rope_parameters
    return Decoder(
        state={f"model.language_model.{n}": value for n, value in decoder.state_dict().items()}
        | {"lm_head.weight": reader.get_output_embeddings().weight},
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        eps=config.layer_norm_eps if config.model_type == "cohere2" else config.rms_norm_eps,
        theta=rope.get("rope_theta", 0.0),
        form=form_of(config),
    )


def embedded(model: Any, given: Inputs) -> Tensor:
    """What the stock decoder is given for a prompt: (tokens, hidden)."""
    seen: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    decoder = cdkit.adapter_for(model).decoder(model)
    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    model.generate(**given, max_new_tokens=1, do_sample=False)
    hook.remove()
    return seen[0][0]


@torch.no_grad()
def answered(model: Any, case: str, batch: Inputs, prompts: Sequence[Prompt], **how: Any) -> Ran:
    """Run a case of `CMAC_CASES` on the batch of these prompts."""
    with cdkit.attach(model, CMAC_CASES[case][0], trace=("logits",), **how) as ran:
        tokens = model.generate(
            **batch, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True
        ).sequences[:, -STEPS:]
    steps = ran.trace.steps
    found = {n: torch.stack([step.logits[n] for step in steps], 1) for n in steps[0].logits}
    combined = [step.combined for step in steps if step.combined is not None]
    found["combined"] = torch.stack(combined, 1)
    decoder: Any = cdkit.adapter_for(model).decoder(model)
    sequences = []
    for prompt, later in zip(prompts, tokens[:, :-1], strict=True):
        ids = prompt.given["input_ids"][0].tolist()
        image = numbered(ids, prompt.image_token, prompt.counts)
        embeds = torch.cat((embedded(model, prompt.given), decoder.get_input_embeddings()(later)))
        every = (*ids, *later.tolist())
        sequences.append(Sequence_(embeds, image + (-1,) * len(later), len(ids), ids=every))
    return Ran(found, decoder_of(model), sequences, case)


@torch.no_grad()
def wanted(ran: Ran, *, decoder: Decoder | None = None, **wrong: Any) -> dict[str, Tensor]:
    """The same by the reference, with another decoder or other rules where a mistake is made."""
    method, rules = CMAC_CASES[ran.case]
    rules = replace(rules, **wrong)

    def branch(own: Rules) -> Tensor:
        results = run(decoder or ran.decoder, ran.sequences, own)
        return torch.stack([result.logits[-STEPS:] for result in results])

    original, distorted = branch(replace(rules, distortion="none")), branch(rules)
    combiner: Any = method.combiner
    combined = contrast(original, [distorted], [combiner.alpha], beta_of(method))
    return {"original": original, "distorted": distorted, "combined": combined}


def check(ran: Ran) -> None:
    assert_close(ran.logits, wanted(ran), within=tolerance(CMAC_CASES[ran.case][0]))


def differs(ran: Ran, other: dict[str, Tensor], *, rows: Sequence[int] | None = None) -> None:
    """A mistake shows in the distorted branch of each of these rows, of all without a choice."""
    gap = (ran.logits["distorted"] - other["distorted"]).abs().amax((1, 2))
    assert all(gap[row] > 1e-5 for row in (range(len(gap)) if rows is None else rows)), gap

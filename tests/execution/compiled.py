"""Compiled steps, run by themselves: `python -m execution.compiled eager cmac vcd`, in tests.

A process of its own, as dynamo cannot follow the type checks that the other tests run under. Prints
one line of JSON: method -> an entry for each prompt, see `Counted`.
"""

import json
import sys
import warnings
from typing import Any, TypedDict

import torch
from parity.tiny import WordTokenizer, batch, sample, tiny
from transformers import CompileConfig

import cdkit

LENGTHS = ((2, 3), (5, 9), (3, 4), (7, 6), (4, 11))
"""Of the text before and after the image; a second prompt stands beside, so there is padding."""
STEPS = 20


class Counted(TypedDict):
    graphs: int
    """Made up to and with this prompt."""
    refused: bool
    """Whether a warning said that nothing is compiled."""
    same_tokens: bool
    """As without compilation, with the dynamic cache."""
    error: float
    """The largest difference of any branch's logits, in float64."""


def counted(name: str, backend: str, *, beams: int = 1, alone: bool = False) -> list[Counted]:
    """Of one method on prompts of several lengths. `alone`: in batches of one, not traced."""
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward if backend == "eager" else torch._inductor.compile(graph, inputs)

    torch._dynamo.reset()
    model, method = tiny(2), cdkit.load(name)
    config = CompileConfig(backend=counting, fullgraph=True, mode=None)  # type: ignore[arg-type]
    asked: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": beams}
    compiled = {"cache_implementation": "static", "compile_config": config}
    found: list[Counted] = []
    trace = () if alone else ("logits",)
    with cdkit.attach(model, method, processor=WordTokenizer(), trace=trace) as run:
        for lengths in LENGTHS:
            inputs = batch([sample(*lengths), sample(7, 2, seed=1)][: 1 if alone else 2])
            outs, logits = [], []
            for how in ({}, compiled):
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", cdkit.CdkitWarning)
                    outs.append(model.generate(**inputs, **asked, **how))
                steps = run.trace.steps
                seen = [x for step in steps for x in step.logits.values()]
                logits.append(torch.stack(seen or [torch.zeros(1)]))
            found.append(
                Counted(
                    graphs=len(graphs),
                    refused=any("compile_config changes nothing" in f"{x.message}" for x in said),
                    same_tokens=outs[0].equal(outs[1]),
                    error=float((logits[0] - logits[1]).abs().max()),
                )
            )
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend, *names = sys.argv[1:]
    beams = 3 if backend == "beams" else 1
    kind = "eager" if beams > 1 else backend
    found = {name: counted(name, kind, beams=beams) for name in names}
    if kind == backend:
        found["alone"] = counted(names[0], kind, alone=True)
    print(json.dumps(found))

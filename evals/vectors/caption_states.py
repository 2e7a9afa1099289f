"""What each layer of a model holds of a caption: forward passes of the stock model, one by one."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.pictures import load_picture
from cdkit.evals.vectors.pairs import Pair
from cdkit.interfaces.adapter_lookup import adapter_for, unwrap
from cdkit.interfaces.demonstrations import DirectionRecipe
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.processors import check_positions

Text = tuple[Pair, str]
"""A pair, and which of its captions."""


@torch.inference_mode()
def states_of(
    engine: AnswerEngine, texts: Iterable[Text], recipe: DirectionRecipe
) -> Float[Tensor, "texts layers hidden"]:
    """The state of each text in each layer of the stock model.

    The state of a layer is its output; of the last layer what the final norm makes of it, as
    Hugging Face's `hidden_states` have it.

    Args:
        engine: The model with its processor.
        texts: Pairs, and for each the caption that follows its prompt.
        recipe: Which tokens count, and how a caption follows its prompt.

    Returns:
        The states in float32, or in float64 of a model in float64; on the CPU.

    Raises:
        CdkitError: An image cannot be read, or a text is too long for the model.
    """
    model: Any = unwrap(engine.model)
    adapter = adapter_for(engine.model)
    precision = torch.promote_types(model.dtype, torch.float32)
    found = []
    for pair, caption in texts:
        inputs = _inputs(engine, pair, caption, recipe)
        check_positions(inputs["input_ids"].shape[1], model.config)
        with _layer_outputs(adapter, model) as outputs:
            engine.model(**inputs, use_cache=False)
        states = torch.stack([each.to("cpu", precision) for each in outputs])
        found.append(recipe.state(states))
    return torch.stack(found)


def _inputs(
    engine: AnswerEngine, pair: Pair, caption: str, recipe: DirectionRecipe
) -> Mapping[str, Tensor]:
    engine.check_prompt(pair.prompt)
    engine.check_prompt(caption)
    prompt = engine.prompt(pair.prompt)
    gap = " " if recipe.space_before and not prompt[-1:].isspace() else ""
    end = str(engine.processor.tokenizer.eos_token or "") if recipe.ends_turn else ""
    text = f"{prompt}{gap}{caption}{end}"
    return engine.moved(engine.batch([[load_picture(pair.image)]], [text]))


@contextmanager
def _layer_outputs(adapter: ModelAdapter, model: nn.Module) -> Iterator[list[Tensor]]:
    """Filled, by a forward pass, with the outputs of the layers, the last one normed: #tokens
    hidden."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0])[0])

    *inner, _ = adapter.layers(model)
    hooks = [each.register_forward_hook(keep) for each in (*inner, adapter.decoder(model))]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()

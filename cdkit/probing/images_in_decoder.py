"""Calls of a decoder that encodes images itself, as they would be with images encoded before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.probing.recorded_calls import RecordedCall


def encoded_before(
    adapter: ModelAdapter, model: Any, given: Mapping[str, Any], calls: Sequence[RecordedCall]
) -> Iterator[RecordedCall]:
    """What cdkit makes of the recorded calls under a method.

    The encoder is called anew as the adapter says, and the decoder gets what went into its first
    layer in the place of token ids and pixels. So the checks hold the one against the other.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        given: What `ModelAdapter.encoder_kwargs` gives for the prompts.
        calls: Those of a stock `generate`, with the arguments of the first layer.
    """
    owner, name = adapter.encoder(model)
    layers = (call for call in calls if call.name == "layer 0")
    for call in calls:
        if call.name == "encoder":
            yield RecordedCall(call.name, given, True, getattr(owner, name)(**given))
        elif call.name == "decoder":
            kept = {name: x for name, x in call.arguments.items() if name not in given}
            kept["inputs_embeds"] = next(iter(next(layers).arguments.values()))
            yield RecordedCall(call.name, kept, call.keywords_only, call.output)
        else:
            yield call

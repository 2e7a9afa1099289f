"""What state interventions and image readouts cannot run with: said before anything is changed, or
before the first token."""

from cdkit.errors import CdkitError
from cdkit.interfaces.image_readout import ImageReadout
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of

WHOLE_PROMPT = {
    "prompt_states": "reads the states of the prompt's last token, before the prompt goes in",
    "image_features": "reads the image tokens' embeddings, which come with the prompt",
    "image_readout": "reads the image tokens out, before the prompt goes in",
}
"""What an intervention reads -> why the prompt must come whole."""


def check_state_split(chunk: int, method: Method) -> None:
    """Raise where a prompt would be split that a state intervention needs whole.

    Args:
        chunk: The `prefill_chunk_size` of the call.
        method: The method that is attached.
    """
    for part in method.live_state_interventions:
        for name, why in WHOLE_PROMPT.items():
            if name in part.reads:
                raise CdkitError(
                    f"{method.name} cannot run with prefill_chunk_size={chunk}: {kind_of(part)} "
                    f"{why}. Leave it out"
                )
    if isinstance(method.readout, ImageReadout):
        raise CdkitError(
            f"{method.name} cannot run with prefill_chunk_size={chunk}: {kind_of(method.readout)} "
            "reads out the image tokens of the whole prompt. Leave it out"
        )


def check_states(attached: AttachedMethod) -> None:
    """Raise where this very model cannot run the state interventions of the method."""
    states, decoder = attached.states, type(attached.decoder).__name__
    if states is None:
        return
    for own in states.reading("image_features"):
        if attached.adapter.features_in_layers:
            raise CdkitError(
                f"{kind_of(own.part)} reads the image tokens' embeddings, and {decoder} gets zeros "
                "there: its layers add the features. Use a method that changes pixels, attention "
                "or the prompt, such as vcd"
            )
    shards = getattr(attached.model, "tp_size", None) or 1
    for own in states.parts if shards > 1 else ():
        if "heads" in (own.part.site, own.part.prompt_site):
            raise CdkitError(
                f"the model's heads are spread over {shards} processes (tensor parallelism), and "
                f"{kind_of(own.part)} looks at all of them; load it with device_map, or use a "
                "method that changes only the inputs, such as vcd"
            )
    for (site, layer), module in states.edited.items():
        width = getattr(module, "in_features", None)
        if site == "heads" and width is not None and width % states.heads:
            raise CdkitError(
                f"layer {layer} of {decoder} hands {width} numbers to its output projection, which "
                f"is no multiple of its {states.heads} heads; use a method that changes layers or "
                "feed-forward networks, such as vista"
            )

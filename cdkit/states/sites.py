"""Where hidden states are in a model: the modules whose output, or input, a method changes."""

from typing import Any

from torch import nn

from cdkit.errors import CdkitError
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.state_intervention import ModelFacts, Site, StateIntervention


def site_module(adapter: ModelAdapter, layer: nn.Module, site: Site) -> nn.Module | None:
    """Find the module of a site in a decoder layer.

    Args:
        adapter: The model's adapter; it says what a family calls the modules.
        layer: The decoder layer.
        site: The site.

    Returns:
        The module whose output the site is; for `heads` the output projection, whose input it is.
        None for a layer that has none.
    """
    if site == "layer":
        return layer
    if site == "mlp":
        return _first(layer, adapter.mlp_names)
    attention = adapter.attention(layer)
    return None if attention is None else _first(attention, adapter.projection_names)


def _first(owner: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(owner, name, None) for name in names)
    return next((module for module in found if isinstance(module, nn.Module)), None)


def acting_layers(
    adapter: ModelAdapter, model: nn.Module, part: StateIntervention, wanted: range, kind: str
) -> tuple[int, ...]:
    """The numbers of the layers in which an intervention can act.

    Args:
        adapter: The model's adapter.
        model: The model.
        part: The intervention.
        wanted: The layers that its `layers` chooses.
        kind: What messages call it.

    Raises:
        CdkitError: Where no layer has the site that it changes or reads, or the attention that it
            reads.
    """
    layers = adapter.layers(model)
    sites: list[Site] = [part.site]
    if "prompt_states" in part.reads and part.prompt_site != part.site:
        sites.append(part.prompt_site)
    here = f"layers {wanted.start} to {wanted.stop - 1} of {type(adapter.decoder(model)).__name__}"
    for site in sites:
        if not any(site_module(adapter, layers[number], site) for number in wanted):
            raise CdkitError(
                f"{kind} needs the site {site!r}, which none of {here} has; use a method that "
                "changes the inputs or the attention, such as vcd or cmac"
            )
    found = [n for n in wanted if all(site_module(adapter, layers[n], site) for site in sites)]
    if "image_attention" in part.reads:
        found = [number for number in found if adapter.attention(layers[number]) is not None]
    if not found:
        raise CdkitError(
            f"{kind} finds none of {here} with all that it needs; give it other layers"
        )
    return tuple(found)


def model_facts(adapter: ModelAdapter, model: nn.Module, layers: tuple[int, ...]) -> ModelFacts:
    """What an intervention that acts in these layers is told of the model."""
    decoder: Any = adapter.decoder(model)
    own: Any = model
    words = decoder.get_input_embeddings().weight
    return ModelFacts(
        name=str(getattr(own.config, "_name_or_path", "") or ""),
        model_type=str(own.config.model_type),
        depth=len(adapter.layers(model)),
        hidden_size=words.shape[-1],
        heads=heads_of(decoder),
        vocabulary=words.shape[0],
        layers=layers,
        decoder=decoder,
    )


def heads_of(decoder: Any) -> int:
    """How many attention heads a layer of the decoder has."""
    return int(decoder.config.num_attention_heads)

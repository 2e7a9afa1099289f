"""States to try state interventions on, cut in pieces and set in larger batches; see
`cdkit.testing`."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.image_readout import ImageLogits
from cdkit.interfaces.state_intervention import (
    ModelFacts,
    PromptStates,
    Site,
    StateIntervention,
    StateSegment,
)
from cdkit.states.image_lens import KeptOfImages
from cdkit.testing.values import normal

DEPTH, HIDDEN, HEADS, VOCAB, IMAGE = 4, 12, 3, 16, 5
"""Those of the decoder of the examples, and how many image tokens a prompt has at most."""
ROWS, TOKENS = 3, 9
IMAGE_TOKENS = (5, 5, 2)
"""Three samples: two images, one image, and one beside padding; two of the tokens are generated."""


def example_model(part: StateIntervention) -> ModelFacts:
    """A model that an intervention may act in."""
    return ModelFacts(
        name="example",
        model_type="example",
        depth=DEPTH,
        hidden_size=HIDDEN,
        heads=HEADS,
        vocabulary=VOCAB,
        layers=tuple(layers_within(part.layers, DEPTH)),
    )


def _width(site: Site, model: ModelFacts) -> tuple[int, ...]:
    """The shape of a token's states at a site."""
    if site == "heads":
        return model.heads, model.hidden_size // model.heads
    return (model.hidden_size,)


def example_prompts(part: StateIntervention, model: ModelFacts) -> PromptStates:
    """The states of three prompts in the branches that the intervention reads."""
    shape = ROWS, len(model.layers), *_width(part.prompt_site, model)
    states = {name: normal(70 + i, *shape) for i, name in enumerate(part.prompt_branches)}
    return PromptStates(states, model.layers, model.depth)


def example_image_logits(
    hidden: int = HIDDEN, vocabulary: int = VOCAB, dtype: torch.dtype = torch.float64
) -> list[ImageLogits]:
    """Those of the image tokens of the three prompts: of two images, of one, and of a small one."""
    head = normal(81, vocabulary, hidden).to(dtype)
    return [
        ImageLogits(3 * normal(82 + row, count, hidden).to(dtype), lambda states: states @ head.T)
        for row, count in enumerate(IMAGE_TOKENS)
    ]


Memory = Mapping[int, dict[Hashable, Tensor]]
"""Layer -> what is remembered there."""


@dataclass(frozen=True, eq=False)
class ExampleCall:
    """One call of the decoder: a segment for each layer in which the intervention acts."""

    segments: tuple[StateSegment, ...]

    def changed(self, part: StateIntervention, memory: Memory | None = None) -> list[Tensor]:
        """The new states of each layer. What a layer passes on starts empty, and so does what is
        remembered, unless it is given."""
        passed_on: dict[Hashable, Tensor] = {}
        kept = memory or {segment.layer: {} for segment in self.segments}
        return [
            part.intervene(
                dataclasses.replace(segment, layer_state=passed_on, memory=kept[segment.layer])
            )
            for segment in self.segments
        ]

    def rows(self, rows: Sequence[int]) -> "ExampleCall":
        """Some rows of the batch."""
        index = torch.tensor(rows)
        return self._each(lambda name, x: x[index])

    def tokens(self, tokens: Sequence[int]) -> "ExampleCall":
        """Some tokens of each row."""
        index = torch.tensor(tokens)
        return self._each(lambda name, x: x[:, index] if name in OF_TOKENS else x)

    def replaced(self, name: str, where: Tensor, value: float) -> "ExampleCall":
        """Other numbers in a field where `where` is True; the fields that are not there stay so."""

        def change(field: str, x: Tensor) -> Tensor:
            if field != name:
                return x
            places = where.view(*where.shape, *[1] * (x.ndim - where.ndim))
            return torch.where(places.expand_as(x), value + x * 0, x)

        return self._each(change)

    def to(self, dtype: torch.dtype) -> "ExampleCall":
        """As a model of another precision computes it: attention and logits stay wide."""
        wide = {"image_logits", "image_weights", "layer_logits", "image_readout"}
        return self._each(
            lambda name, x: (
                x.to(torch.float32 if name in wide else dtype) if x.is_floating_point() else x
            ),
            constants=lambda x: x.to(dtype) if x.is_floating_point() else x,
        )

    def _each(self, change: Any, constants: Any = None) -> "ExampleCall":
        made = []
        for segment in self.segments:
            new: dict[str, Any] = {}
            for field in dataclasses.fields(segment):
                value = getattr(segment, field.name)
                if isinstance(value, Tensor):
                    new[field.name] = change(field.name, value)
            for field_name in ("prepared", "image_readout"):
                values: Mapping[str, Tensor] = getattr(segment, field_name)
                new[field_name] = {n: change(field_name, own) for n, own in values.items()}
            if constants is not None:
                new["constants"] = {n: constants(own) for n, own in segment.constants.items()}
            made.append(dataclasses.replace(segment, **new))
        return ExampleCall(tuple(made))


OF_TOKENS = frozenset(
    {"states", "token_mask", "is_image", "predicts_next", "generated", "module_input"}
)
"""The fields with an entry for each token."""


def example_call(
    part: StateIntervention,
    model: ModelFacts,
    constants: Mapping[str, Tensor],
    prepared: Mapping[str, Tensor],
    images: KeptOfImages | None = None,
) -> ExampleCall:
    """A call for three rows of seven prompt tokens and two generated ones.

    `images` is what the intervention keeps of the image tokens' logits, as `example_image_logits`
    gives these.
    """
    token_mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    token_mask[2, :2] = False
    is_image = torch.zeros_like(token_mask)
    is_image[0, 0:2] = is_image[0, 3:6] = is_image[1, 1:6] = is_image[2, 3:5] = True
    generated = (torch.arange(TOKENS) >= 7).expand(ROWS, -1)
    valid = torch.arange(IMAGE) < is_image.sum(-1, keepdim=True)
    reads, segments = part.reads, []
    for place, layer in enumerate(model.layers):
        seed, more = 100 * (layer + 1), dict[str, Any]()
        if "image_features" in reads:
            features = normal(seed, ROWS, IMAGE, model.hidden_size)
            more["image_features"] = features.masked_fill(~valid[..., None], 0)
        if images is not None:
            more["image_readout"], more["readout_valid"] = images.values, images.valid
        if "image_attention" in reads:
            logits = normal(seed + 1, ROWS, model.heads, IMAGE)
            logits = logits.masked_fill(~valid[:, None], -torch.inf)
            more["image_logits"], more["image_weights"] = logits, logits.softmax(-1) / 2
        if reads & {"image_features", "image_attention"}:
            more["image_valid"] = valid
        if "module_input" in reads:
            more["module_input"] = normal(seed + 2, ROWS, TOKENS, model.hidden_size)
        if "layer_logits" in reads:
            more["layer_logits"] = 3 * normal(seed + 3, ROWS, model.vocabulary)
        segments.append(
            StateSegment(
                states=normal(seed + 4, ROWS, TOKENS, *_width(part.site, model)),
                token_mask=token_mask,
                is_image=is_image,
                predicts_next=generated | (torch.arange(TOKENS) == 6),
                generated=generated,
                layer=layer,
                depth=model.depth,
                constants={name: own[place].double() for name, own in constants.items()},
                prepared={name: own[:, place] for name, own in prepared.items()},
                **more,
            )
        )
    return ExampleCall(tuple(segments))

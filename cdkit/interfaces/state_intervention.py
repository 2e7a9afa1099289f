"""State interventions: changes of hidden states in chosen branches, the original one too."""

import abc
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.depth import EVERY_LAYER, Depth
from cdkit.interfaces.image_readout import ImageLogits
from cdkit.interfaces.part import Part
from cdkit.registry import Registry

Site = Literal["layer", "mlp", "heads"]
"""Where in a decoder layer hidden states are changed or read.

`layer`: its output, the residual stream. `mlp`: the output of its feed-forward network, before it
is added to the residual stream; in a mixture of experts the output of all experts together.
`heads`: the output of each attention head, before the output projection.
"""
EditedRows = Literal["every", "text", "predicting", "generated"]
"""The tokens whose states are changed; padding never is.

`every`: all tokens. `text`: all but image tokens. `predicting`: those that predict the next token,
which are the last one of the prompt and each generated one. `generated`: generated tokens.
"""
StateReading = Literal[
    "prompt_states",
    "image_features",
    "image_readout",
    "image_attention",
    "module_input",
    "layer_logits",
]
"""What a state intervention is told besides the states.

`prompt_states`: states of the last prompt token, in branches of its choice: `prepare` gets them.
`image_features`: the embeddings of the image tokens, as the decoder gets them. `image_readout`:
what `read_image` makes of the next-token logits of the image tokens. `image_attention`: the
attention of each head to the image tokens, in the token that predicts the next one.
`module_input`: what the feed-forward network, or the layer, gets. `layer_logits`: next-token logits
read out of the state before this layer.
"""


@dataclass(frozen=True)
class ModelFacts:
    """What `StateIntervention.constants` is told of the model that the method is attached to."""

    name: str
    """The name or path that the model was loaded from; may be empty."""
    model_type: str
    depth: int
    """How many layers the decoder has."""
    hidden_size: int
    heads: int
    """How many attention heads a layer has."""
    vocabulary: int
    layers: tuple[int, ...]
    """The numbers of the layers in which the intervention acts, from 0."""
    decoder: Any = None
    """The text decoder, to hold a file's model against; None for a model that is made up."""


@dataclass(frozen=True, eq=False)
class PromptStates:
    """The states of the last prompt token, before any state intervention changes them."""

    states: Mapping[str, Float[Tensor, "samples layers *hidden"]]
    """Branch -> its states at the intervention's `prompt_site`: (samples, layers, hidden), or
    (samples, layers, heads, head_dim) of head outputs. A row for each prompt."""
    layers: tuple[int, ...]
    """The numbers of these layers: those in which the intervention acts."""
    depth: int
    """How many layers the decoder has."""


@dataclass(frozen=True, eq=False)
class StateSegment:
    """The states of one branch at one site of one layer, in one call of the decoder.

    Nothing may be written to but `layer_state`, and `memory` by an intervention that `remembers`.
    """

    states: Float[Tensor, "rows tokens *hidden"]
    """(rows, tokens, hidden), or (rows, tokens, heads, head_dim) of head outputs, as the model
    computes them: in half precision where it does."""
    token_mask: Bool[Tensor, "rows tokens"]
    """False on padding."""
    is_image: Bool[Tensor, "rows tokens"]
    """True for image tokens."""
    predicts_next: Bool[Tensor, "rows tokens"]
    """True for the last token of the prompt and each generated one."""
    generated: Bool[Tensor, "rows tokens"]
    """True for generated tokens."""
    layer: int
    """The number of the decoder layer, from 0."""
    depth: int
    """How many layers the decoder has."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """This layer's entry of what `constants` gave, in the type and on the device of the states."""
    prepared: Mapping[str, Float[Tensor, "rows ..."]] = field(default_factory=dict)
    """This layer's entry of what `prepare` gave, for these rows."""
    image_features: Float[Tensor, "rows image hidden"] | None = None
    """The embeddings of each row's image tokens, padded with zeros at the end; None unless they are
    declared in `reads`."""
    image_valid: Bool[Tensor, "rows image"] | None = None
    """True where `image_features` and `image_logits` hold an image token, False on their padding;
    None where neither is there."""
    image_readout: Mapping[str, Float[Tensor, "rows image ..."]] = field(default_factory=dict)
    """What `read_image` made of each row's prompt, padded with zeros at the end; empty unless it is
    declared. In every branch it is that of the original branch."""
    readout_valid: Bool[Tensor, "rows image"] | None = None
    """True where `image_readout` holds an image token, False on its padding; None without it."""
    image_logits: Float[Tensor, "rows heads image"] | None = None
    """Attention logits on the image tokens, before the softmax, of the token that predicts the next
    one: -inf where it may not attend. None unless `image_attention` is declared."""
    image_weights: Float[Tensor, "rows heads image"] | None = None
    """The weights that the softmax over all columns makes of them."""
    module_input: Float[Tensor, "rows tokens hidden"] | None = None
    """What the feed-forward network or the layer got; None unless it is declared."""
    layer_logits: Float[Tensor, "rows vocab"] | None = None
    """Next-token logits of the state before this layer, in the call's last token, through the final
    norm and the output head; None unless they are declared."""
    layer_state: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What one layer passes on to the layers above it in the same call, (rows, ...) each. An
    intervention uses itself as the key."""
    memory: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What an intervention that `remembers` keeps in this layer for the whole answer, (rows, ...)
    each; the engine reorders and repeats it with the beams. It uses itself as the key, and never
    writes into a tensor."""


class StateIntervention(Part, abc.ABC):
    """Changes hidden states of chosen branches, the original one too (VISTA, MemVR, SPIN).

    The engine puts the result where `rows` says and leaves all other states as they are. State
    interventions of one site act in the order in which the method lists them.
    """

    branches: tuple[str, ...]
    """A field: names of the branches in which it acts; "original" is the original one."""
    layers: Depth = EVERY_LAYER
    """The layers in which it acts: shares of all decoder layers, those of a hybrid decoder without
    attention included. Layers of the range that lack the site are left alone. An intervention that
    does not act in every decoder layer has this as a field."""
    rows: EditedRows = "every"
    """The tokens whose states it changes; a field where this can be chosen, `rows = "text"` without
    a type where it is always so."""
    site: ClassVar[Site]
    """Where it changes them."""
    reads: ClassVar[frozenset[StateReading]] = frozenset()
    """What it is told besides the states."""
    prompt_site: ClassVar[Site] = "layer"
    """Where `prompt_states` are read."""
    switch: ClassVar[str] = ""
    """The parameter that switches it off when it is 0; empty where there is none. Then the engine
    leaves it out, so that the model is the stock one to the bit."""
    needs_whole_prompt: ClassVar[bool] = False
    """Whether a token's new state depends on the call's other tokens. Then the engine refuses
    arguments that split the prompt, or run it again with an answer behind it."""
    remembers: ClassVar[bool] = False
    """Whether it keeps something in `StateSegment.memory` from call to call, such as what the
    prompt showed. Then the same arguments are refused, and decode loops that take tokens back."""

    @property
    def is_identity(self) -> bool:
        """Whether these parameters change nothing."""
        return bool(self.switch) and getattr(self, self.switch) == 0

    @property
    def needs_whole_calls(self) -> bool:
        """Whether a call of the decoder must hold the whole prompt, or one generated token: the
        attention to the image is told for one token of a call, and what is remembered grows call by
        call."""
        return self.needs_whole_prompt or self.remembers or "image_attention" in self.reads

    @property
    def keeps_prefix(self) -> bool:
        """Whether it changes nothing before the last token of the prompt. Then branches may share
        the states of the prompt's beginning."""
        return self.rows in ("predicting", "generated")

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        """The branches whose `prompt_states` it reads: "original", distorted branches, or branches
        that run for the prompt alone (`Method.prompt_branches`)."""
        return ()

    def constants(self, model: ModelFacts) -> Mapping[str, Float[Tensor, "layers ..."]]:
        """Load what is the same for all prompts, such as steering vectors from a file.

        Called once, when the method is attached.

        Args:
            model: The model that the method is attached to.

        Returns:
            Name -> a tensor whose first axis is `model.layers`, the layers in which it acts.

        Raises:
            CdkitError: Where the file cannot be read, or belongs to another model.
        """
        return {}

    def prepare(self, prompt: PromptStates) -> Mapping[str, Float[Tensor, "samples layers ..."]]:
        """Make of the prompts' states what the whole answer uses; a pure function.

        Called once for each batch of prompts, where `prompt_states` is declared.

        Args:
            prompt: The states of the last prompt token, in `prompt_branches`.

        Returns:
            Name -> a tensor whose first axes are the samples and `prompt.layers`. A sample's values
            must not depend on another sample.
        """
        return {}

    def image_layer(self, count: int) -> int:
        """Choose after how many layers the image tokens are read out for `image_readout`.

        Args:
            count: How many layers the decoder has.

        Returns:
            0 for the embeddings, `count`, the default, for the output of the last layer.
        """
        return count

    def read_image(self, logits: ImageLogits) -> Mapping[str, Float[Tensor, "image ..."]]:
        """Reduce the logits of a prompt's image tokens to what `intervene` uses; a pure function.

        Called once for each prompt, where `image_readout` is declared, with the states of the
        original branch before any state intervention changes them.

        Args:
            logits: Of one prompt.

        Returns:
            Name -> a tensor whose first axis is the image tokens.
        """
        return {}

    @abc.abstractmethod
    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens *hidden"]:
        """Change the states of one branch in one layer; a pure function.

        Args:
            states: The states, and what is declared in `reads`. A row of the batch must not depend
                on another one.

        Returns:
            New states of the same shape and type. Those of tokens that `rows` leaves out are not
            used.
        """


STATE_INTERVENTIONS = Registry[StateIntervention](
    StateIntervention,  # type: ignore[type-abstract]
    what="state intervention",
    folder="cdkit.strategies.state_interventions",
    group="cdkit.strategies",
)

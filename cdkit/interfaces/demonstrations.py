"""Steering along directions of a file: how they come from demonstrations, and how they are read."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.functional.directions import Directions, States, random_directions
from cdkit.interfaces.state_intervention import (
    STATE_INTERVENTIONS,
    ModelFacts,
    StateIntervention,
)
from cdkit.interfaces.vector_file import read_vectors
from cdkit.registry import UnknownNameError, unknown


@dataclass(frozen=True)
class DirectionRecipe:
    """How directions are made of the captions of demonstrations."""

    directions: Callable[[States, States, int], Directions]
    """A pure function: (states of truthful captions, of hallucinated ones, rank) -> directions."""
    tokens: Literal["last", "all"]
    """Which tokens make a caption's state: the last one of the text, or the mean of all, those of
    the prompt and the image too."""
    rank: int
    """The rank as published."""
    centred: bool
    """Whether the mean of the differences is taken off first; see `check_rank`."""
    space_before: bool = False
    """Whether a space stands between the prompt and the caption, where the prompt ends in none."""
    ends_turn: bool = False
    """Whether the tokenizer's end token follows the caption."""

    def state(
        self, outputs: Float[Tensor, "layers tokens hidden"]
    ) -> Float[Tensor, "layers hidden"]:
        """The state of one caption, from the outputs of all layers."""
        return outputs[:, -1] if self.tokens == "last" else outputs.mean(1)


class DirectionSteering(StateIntervention, abc.ABC):
    """A state intervention along directions that `cdkit vectors` computes.

    `intervene` finds the layer's directions in `states.constants["directions"]`, (rank, hidden).
    """

    vectors: Path | None
    """A field: the file of directions, relative to the working directory; None where there is none
    yet. It needs one to run, unless the directions are random."""
    random_seed: int | None
    """A field: where it is given, random directions take the place of the file's, drawn from this
    seed. They have the lengths and angles of the file's; without a file they are of length 1 and
    orthogonal."""
    recipe: ClassVar[DirectionRecipe]
    """How `cdkit vectors` makes the directions."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many directions of a layer it uses: the first ones of the file."""

    @property
    def lacks(self) -> str:
        if self.is_identity or self.vectors is not None or self.random_seed is not None:
            return ""
        kind = STATE_INTERVENTIONS.name_of(type(self))
        return (
            f"a file of directions: compute it (cdkit vectors {kind} --model MODEL --data PAIRS "
            f"--out {kind}.safetensors) and set vectors={kind}.safetensors"
        )

    def constants(self, model: ModelFacts) -> Mapping[str, Directions]:
        if lacks := self.lacks:
            raise CdkitError(f"it needs {lacks}")
        if self.count > model.hidden_size:
            raise CdkitError(
                f"{self.count} directions are more than the {model.hidden_size} numbers of a state "
                "have: set fewer"
            )
        if self.vectors is None:
            like = torch.eye(self.count, model.hidden_size, dtype=torch.float64)
            directions = like.expand(model.depth, -1, -1)
        else:
            directions = self._of_file(self.vectors, model)
        if self.random_seed is not None:
            directions = random_directions(directions, seed=self.random_seed)
        return {"directions": directions[list(model.layers)]}

    def _of_file(self, path: Path, model: ModelFacts) -> Directions:
        found = read_vectors(path)
        kind = STATE_INTERVENTIONS.name_of(type(self))
        if (method := found.manifest["method"]) != kind:
            raise CdkitError(
                f"{path} holds the directions of {method}: compute those of {kind} "
                f"(cdkit vectors {kind} ...)"
            )
        found.check(model.decoder, model.depth, path)
        rank = found.directions.shape[1]
        if self.count > rank:
            raise CdkitError(
                f"{path} holds {rank} directions a layer, but {kind} is set to use {self.count}: "
                f"set fewer, or compute more (cdkit vectors {kind} --rank {self.count} ...)"
            )
        return found.directions[:, : self.count]


def check_steering(part: DirectionSteering) -> None:
    """Check the fields that every such intervention has.

    Args:
        part: The intervention.

    Raises:
        CdkitError: If the seed is none.
    """
    seed = part.random_seed
    if seed is not None and (isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise CdkitError(f"random_seed must be a whole number from 0 on, got {seed!r}")


def steering(method: str) -> type[DirectionSteering]:
    """Find the state intervention whose directions are to be computed.

    Args:
        method: The name under which it is registered.

    Returns:
        Its class.

    Raises:
        CdkitError: If none is called so; the message names those that there are.
    """
    known = {
        name: cls for name, cls in STATE_INTERVENTIONS.items() if issubclass(cls, DirectionSteering)
    }
    if method not in known:
        raise UnknownNameError(unknown("method with directions", method, known))
    return known[method]

"""What a part promises that reads the prompt's image tokens out; see `cdkit.testing`."""

from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.image_readout import ImageReadout, ImageStep
from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.probing.promises import require, require_same
from cdkit.states.image_lens import KeptOfImages, stacked
from cdkit.testing.example_states import HIDDEN, VOCAB, example_image_logits
from cdkit.testing.values import normal, pure, takes

OWN_ROW = "reduce over the image tokens or the vocabulary of one row, never over dim 0"
PADDING = "leave out what step.valid says is no image token, such as by masked_fill"


def check_read_image(
    part: ImageReadout | StateIntervention, hidden: int = HIDDEN, vocabulary: int = VOCAB
) -> KeptOfImages:
    """Check what a part keeps of image tokens' logits, and return it for three example prompts.

    Args:
        part: The part.
        hidden: How wide the states of the examples are.
        vocabulary: How many logits they have.

    Raises:
        AssertionError: Where a promise is broken.
    """
    each, valid = list[dict[str, Tensor]](), list[Tensor]()
    prompts = example_image_logits(hidden, vocabulary)
    with takes(part, "image tokens' logits", todo="use logits.each or logits.pieces"):
        for logits in prompts:
            made = pure(part, part.read_image, logits)
            for name, own in made.items():
                require(
                    isinstance(own, Tensor) and own.shape[:1] == (len(logits),),
                    part,
                    f"read_image gives {name} for each of {len(logits)} image tokens",
                    getattr(own, "shape", type(own)),
                    todo="keep the first axis, that of the image tokens",
                )
                if own.is_floating_point():
                    whole = bool(own.isfinite().all())
                    todo = "guard logarithms and divisions: probabilities may be 0"
                    require(whole, part, f"read_image gives finite {name}", todo=todo)
            each.append(dict(made))
            valid.append(torch.ones(len(logits), dtype=torch.bool))
    require(bool(each[0]), part, "read_image keeps something", todo="return at least one tensor")
    same = all(own.keys() == each[0].keys() for own in each)
    require(
        same,
        part,
        "read_image keeps the same of every prompt",
        todo="return the same names each time",
    )
    halves = example_image_logits(hidden, vocabulary, torch.bfloat16)
    with takes(part, "logits in bfloat16", todo="use logits.each, which widens them"):
        for logits in halves:
            part.read_image(logits)
    values = {name: stacked([own[name] for own in each]) for name in each[0]}
    return KeptOfImages(values, stacked(valid))


def check_image_readout(readout: ImageReadout) -> None:
    """Check the promises of an image readout besides those of a layer readout.

    Args:
        readout: The readout.

    Raises:
        AssertionError: Where a promise is broken.
    """
    kept = check_read_image(readout)
    step = ImageStep(3 * normal(90, len(kept.valid), VOCAB), kept.values, kept.valid)
    with takes(readout, "one step of three rows", todo="return (rows, vocab)"):
        made = pure(readout, readout.step_logits, step)
    require(
        made.shape == step.original.shape and bool(made.isfinite().all()),
        readout,
        "its logits are finite, and have the shape of the original ones",
        getattr(made, "shape", type(made)),
        todo="return (rows, vocab); the method's constraint rules tokens out",
    )
    for order in ([2, 0, 1], [1], [2], [0, 0, 1, 2]):
        some = torch.tensor(order)
        again = readout.step_logits(_of(step, some))
        require_same(again, made[some], readout, "rows of the batch are independent", todo=OWN_ROW)
    moved = {name: _padding(own, kept.valid, 1) for name, own in kept.values.items()}
    again = readout.step_logits(ImageStep(step.original, moved, kept.valid))
    require_same(again, made, readout, "nothing depends on padding", todo=PADDING)
    fewer = {name: own[2:, :2] for name, own in kept.values.items()}
    again = readout.step_logits(ImageStep(step.original[2:], fewer, kept.valid[2:, :2]))
    require_same(again, made[2:], readout, "nothing depends on padding", todo=PADDING)


def _of(step: ImageStep, some: Tensor) -> ImageStep:
    kept = {name: own[some] for name, own in step.kept.items()}
    return ImageStep(step.original[some], kept, step.valid[some])


def _padding(values: Tensor, valid: Tensor, other: Any) -> Tensor:
    """Other numbers where there is no image token."""
    return torch.where(valid.view(*valid.shape, *[1] * (values.ndim - 2)), values, values + other)

"""What the functions of parts return, checked where it is used: an error, not a wrong answer.

The contract suite (`cdkit.testing`) finds more than this. These checks look at shapes and types
alone, which the host knows, and wait for no device.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.decoding_loop import Hypothesis
from cdkit.interfaces.distortion import AttentionDistortion, Prompt, PromptDistortion
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.segment import CrossModalSegment, changes_field
from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.methods.part_kinds import kind_of

CHANGEABLE = ("logits", "text_logits", "replaced", "replacement", "pruned")
"""The fields of a segment that a part may change."""
FIXED = tuple(
    field.name
    for field in fields(CrossModalSegment)
    if field.name not in (*CHANGEABLE, "layer_state", "memory", "image")
)


def result_error(part: object, function: str, found: str, must: str, check: str) -> CdkitError:
    """Make the error of a function that does not return what it must.

    Args:
        part: The part.
        function: The name of its function.
        found: What it returned.
        must: What it must return.
        check: The function of `cdkit.testing` that tests such parts.

    Returns:
        The error, to be raised.
    """
    return CdkitError(
        f"{function} of {kind_of(part)} returned {found}, and must return {must}; hold it to "
        f"cdkit.testing.{check}"
    )


def wrong_result(
    part: object, function: str, value: object, shape: Sequence[int], check: str
) -> CdkitError:
    """Make the error of a part that returned something else than a tensor of a shape.

    Callers compare before they use a value, since one of another shape could be broadcast.

    Args:
        part: The part.
        function: Which of its functions returned the value.
        value: What it returned.
        shape: The shape that it must have.
        check: The function of `cdkit.testing` that tests such parts.

    Returns:
        The error, to be raised.
    """
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    return result_error(part, function, found, f"a tensor of shape {tuple(shape)}", check)


def tensor_and_state(
    part: object, function: str, made: object, shape: Sequence[int], check: str, *, what: str
) -> tuple[Tensor, Any]:
    """Hold what a part with a state returned to its shape; the state is not looked at.

    Args:
        part: The part.
        function: The name of its function.
        made: What it returned.
        shape: The shape that the tensor must have.
        check: The function of `cdkit.testing` that tests such parts.
        what: What the tensor is, such as "logits".

    Returns:
        The tensor and the state.

    Raises:
        CdkitError: If it is no pair, or the tensor is none of that shape.
    """
    if not isinstance(made, tuple) or len(made) != 2:
        must = f"two things: the {what} and the state"
        raise result_error(part, function, type(made).__name__, must, check)
    value, state = made
    if not isinstance(value, Tensor) or value.shape != shape:
        raise wrong_result(part, function, value, shape, check)
    return value, state


def said_of(value: object) -> str:
    """A returned value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return type(value).__name__


@contextmanager
def unwritten(part: object, function: str, *given: Tensor | None) -> Iterator[None]:
    """Raise where the function that runs inside writes into a tensor that it was given.

    Args:
        part: The part.
        function: The name of its function.
        given: The tensors. Those of inference mode cannot be watched.

    Raises:
        CdkitError: At the end.
    """
    watched = [(x, x._version) for x in given if x is not None and not x.is_inference()]
    yield
    if any(x._version != version for x, version in watched):
        raise CdkitError(
            f"{function} of {kind_of(part)} writes into a tensor that it was given, which "
            "others read, too: make a new one, such as x * 2 in place of x.mul_(2)"
        )


def check_float(
    part: object, function: str, value: Tensor, check: str, *, like: Tensor | None = None
) -> None:
    """Raise unless a returned tensor holds floating-point numbers.

    Args:
        part: The part.
        function: The name of its function.
        value: What it returned.
        check: The function of `cdkit.testing` that tests such parts.
        like: Of which precision it must be at least; None for any.
    """
    wide = like is None or value.dtype.itemsize >= like.dtype.itemsize
    if not value.dtype.is_floating_point or not wide:
        must = "floating-point numbers" if like is None else f"{like.dtype}, or a wider type"
        raise result_error(part, function, said_of(value), must, check)


def check_kept(part: object, kept: object, rows: int, where: str) -> None:
    """Raise unless what a part keeps for later steps are tensors with an entry for each row.

    Args:
        part: The part.
        kept: The mapping that it keeps.
        rows: How many rows there are.
        where: What messages call the mapping, such as "the state".
    """
    if not isinstance(kept, Mapping):
        raise CdkitError(
            f"{where} of {kind_of(part)} must be a mapping of tensors, got {said_of(kept)}"
        )
    for key, value in kept.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != rows:
            what = repr(key) if isinstance(key, str) else "an entry"
            raise CdkitError(
                f"{where} of {kind_of(part)} holds {said_of(value)} as {what}, and must hold "
                f"tensors whose first axis is the {rows} rows of the batch: they are reordered "
                "with the beams"
            )


def check_memory(
    part: AttentionDistortion | Intervention | StateIntervention,
    memory: Mapping[Hashable, object],
    rows: int,
    *,
    before: int = 0,
) -> None:
    """Raise where a part writes into a memory undeclared, or keeps no entry for each row there.

    Args:
        part: The part.
        memory: What its segment has as memory, after it ran.
        rows: How many rows there are.
        before: How many entries the memory had before.
    """
    if part.remembers:
        own = {key: value for key, value in memory.items() if key == part}
        check_kept(part, own, rows, "the memory")
    elif len(memory) > before:
        raise CdkitError(
            f"{kind_of(part)} writes into the memory, which is kept only for parts that declare "
            "remembers = True: declare it"
        )


@dataclass(frozen=True)
class CheckedChange:
    """A distortion or an intervention of the attention, held to what it may return."""

    part: AttentionDistortion | Intervention
    change: Callable[[CrossModalSegment], CrossModalSegment]
    """Its function."""

    def __call__(self, segment: CrossModalSegment) -> CrossModalSegment:
        """Change a segment.

        Args:
            segment: As the part gets it.

        Returns:
            What the part returns.

        Raises:
            CdkitError: If that is not a segment that differs as it may.
        """
        if torch.compiler.is_compiling():
            return self.change(segment)
        before = len(segment.memory)
        if segment.generated:
            after: object = self.change(segment)
        else:  # the prompt's rows show whether it writes into what it gets
            held = segment.image.held_tensors()
            with unwritten(self.part, self._name, segment.logits, *held):
                after = self.change(segment)
        if not isinstance(after, CrossModalSegment):
            must = "a segment, such as dataclasses.replace(segment, logits=...)"
            raise result_error(self.part, self._name, said_of(after), must, "check_strategy")
        check_memory(self.part, segment.memory, segment.logits.shape[0], before=before)
        self._check(segment, after)
        return after

    @property
    def _name(self) -> str:
        return "distort" if isinstance(self.part, AttentionDistortion) else "intervene"

    def _check(self, before: CrossModalSegment, after: CrossModalSegment) -> None:
        """Raise where a changed field has another shape or type, or may not be changed."""
        if after is before:
            return
        for name in ("logits", "text_logits"):
            if changes_field(before, after, name):
                old, changed = getattr(before, name), getattr(after, name)
                same = isinstance(changed, Tensor) and changed.shape == old.shape
                if not same or changed.dtype != old.dtype:
                    must = f"shape {tuple(old.shape)} and type {old.dtype}"
                    raise self._error(name, changed, must)
        rows, _, text, image = before.logits.shape
        new: Any = after.replaced
        if new is not None and new is not before.replaced:
            fits = isinstance(new, Tensor) and new.ndim == 4 and new.dtype == torch.bool
            if not fits or (new.shape[0], *new.shape[2:]) != (rows, text, image):
                shape = f"({rows}, heads, {text}, {image})"
                raise self._error("replaced", new, f"shape {shape} and type torch.bool")
        new = after.replacement
        if (new is None) != (after.replaced is None):
            what = "replaced cells without a replacement"
            if after.replaced is None:
                what = "a replacement without replaced cells"
            raise result_error(self.part, self._name, what, "both or neither", "check_strategy")
        if new is not None and new is not before.replacement and not before.generated:
            own = before.image.values
            shapes = tuple(own.shape), (*own.shape[:2], 1, own.shape[3])
            if not isinstance(new, Tensor) or tuple(new.shape) not in shapes:
                raise self._error("replacement", new, f"shape {shapes[0]} or {shapes[1]}")
        new = after.pruned
        if new is not None and new is not before.pruned:
            fits = isinstance(new, Tensor) and new.dtype == torch.bool
            if not fits or new.shape != (rows, image):
                raise self._error("pruned", new, f"shape {(rows, image)} and type torch.bool")
            if getattr(self.part, "keeps_prefix", True):
                must = "none, unless the strategy declares keeps_prefix = False"
                raise result_error(self.part, self._name, "pruned tokens", must, "check_strategy")
        if not before.generated:
            given, returned = vars(before), vars(after)
            for name in FIXED:  # what was not read is not computed
                both = name in given and name in returned
                if both and given[name] is not returned[name]:
                    must = f"that field as it was: only {', '.join(CHANGEABLE)} may differ"
                    raise result_error(
                        self.part, self._name, f"another {name}", must, "check_strategy"
                    )

    def _error(self, name: str, value: object, must: str) -> CdkitError:
        found = f"{name} that are {said_of(value)}"
        return result_error(self.part, self._name, found, f"{name} of {must}", "check_strategy")


def check_features(part: object, value: object, like: Float[Tensor, "*shape"]) -> Tensor:
    """Hold distorted pixels or features to the shape of those that were given.

    Args:
        part: The distortion.
        value: What its `distort` returned.
        like: What it got.

    Returns:
        The value.

    Raises:
        CdkitError: If it is no tensor of floating-point numbers of that shape.
    """
    if not isinstance(value, Tensor) or value.shape != like.shape:
        must = f"a tensor of shape {tuple(like.shape)}"
        raise result_error(part, "distort", said_of(value), must, "check_strategy")
    check_float(part, "distort", value, "check_strategy")
    return value


def check_prompt(
    part: PromptDistortion, value: object, before: Prompt, vocabulary: int | None = None
) -> Prompt:
    """Hold a distorted prompt to what may be changed of one.

    Args:
        part: The distortion.
        value: What its `distort` returned.
        before: What it got.
        vocabulary: How many tokens the model has; None where that is not known.

    Returns:
        The prompt.

    Raises:
        CdkitError: If it is no prompt, has ids that are none, or other image tokens.
    """
    if not isinstance(value, Prompt):
        must = "a Prompt, such as prompt.insert(text, at=prompt.question_slot)"
        raise result_error(part, "distort", said_of(value), must, "check_strategy")
    for token, image in zip(value.ids, value.is_image, strict=True):
        whole = isinstance(token, int) and (token >= 0 or image)
        if not whole or (vocabulary is not None and token >= vocabulary and not image):
            top = "" if vocabulary is None else f" below {vocabulary}"
            must = f"token ids that are whole numbers from 0{top}"
            raise result_error(part, "distort", f"the id {token!r}", must, "check_strategy")

    def images(prompt: Prompt) -> list[int]:
        return [i for i, image in zip(prompt.ids, prompt.is_image, strict=True) if image]

    left, all_of_them = images(value), images(before)
    if left and left != all_of_them:
        found = f"{len(left)} image tokens where {len(all_of_them)} were"
        must = "all of them, in their order, or none"
        raise result_error(part, "distort", found, must, "check_strategy")
    if all_of_them and not left and not part.removes_image:
        raise CdkitError(
            f"{kind_of(part)} takes the image out of the prompt: declare removes_image = "
            "True, so that nothing else is asked to act on the image there"
        )
    return value


def check_answers(part: object, answers: object, vocabulary: int, longest: int) -> None:
    """Raise unless a decode loop returned answers.

    Args:
        part: The loop.
        answers: What its `run` returned.
        vocabulary: How many tokens the model has.
        longest: How many tokens an answer may have.
    """
    if not isinstance(answers, Sequence):
        raise result_error(part, "run", said_of(answers), "a list of Hypothesis", "check_loop")
    for one in answers:
        if not isinstance(one, Hypothesis):
            raise result_error(part, "run", said_of(one), "a list of Hypothesis", "check_loop")
        if len(one.tokens) > longest:
            found = f"an answer of {len(one.tokens)} tokens"
            raise result_error(part, "run", found, f"at most {longest} tokens", "check_loop")
        for token in one.tokens:
            if not isinstance(token, int) or not 0 <= token < vocabulary:
                must = f"token ids that are whole numbers from 0 below {vocabulary}"
                raise result_error(part, "run", f"the token {token!r}", must, "check_loop")

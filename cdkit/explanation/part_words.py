"""What a method's parts say about themselves, in words: their docstrings, formulas and fields."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from cdkit.explanation.explained import BranchInput, DescribedPart
from cdkit.generation.traced_inputs import TracedInputs
from cdkit.interfaces.distortion import Modified
from cdkit.interfaces.part import Part
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import describe, kind_of

CHANGES: Mapping[Modified, str] = {
    "pixels": "the pixels of the image",
    "features": "the features that the image encoder makes of it",
    "prompt": "the prompt",
    "logits": "the attention logits of text on the image",
    "values": "the values that text takes from image tokens",
    "text_logits": "the attention logits of text on text",
}
"""What a distortion modifies -> words."""
assert CHANGES.keys() == set(get_args(Modified))


def first_sentence(part: object) -> str:
    """What a part does: the first sentence of its docstring, with its parameters' values."""
    text = " ".join((inspect.getdoc(type(part)) or "").split("\n\n")[0].split())
    found = re.match(r"(.+?\.)(?:\s|$)", text)
    words = (found[1] if found else text).rstrip(":.")
    return re.sub(r"`(\w+)`(?!-)", lambda name: _value(part, name[1]), words).replace("`", "")


def _value(part: object, name: str) -> str:
    """A parameter's value, or the kind of the part that it is; the name where neither is short."""
    value = getattr(part, name, None)
    if isinstance(value, Part):
        return kind_of(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return name
    return f"{value:g}" if isinstance(value, float) else str(value)


def described_parts(method: Method) -> tuple[DescribedPart, ...]:
    """The parts that have something to do, in their order."""
    live = {branch.name for branch in (*method.live_branches, *method.prompt_branches)}
    names = {branch.name for branch in method.branches}
    found = []
    for place, part in method.parts():
        if place.split(".")[0] in names - live or getattr(part, "is_identity", False) is True:
            # a combiner without branches is an identity, but says what the others come into
            if place != "combiner" or not live:
                continue
        values = describe(part)
        kind = values.pop("kind")
        shown = {name: value for name, value in values.items() if not isinstance(value, dict)}
        found.append(
            DescribedPart(
                place.removesuffix(f".{kind}"),
                kind,
                first_sentence(part),
                part.formula,
                tuple((name, str(value)) for name, value in shown.items()),
            )
        )
    return tuple(found)


def branch_inputs(
    method: Method,
    inputs: TracedInputs | None,
    sample: int,
    decode: Callable[[Sequence[int]], list[str]] | None,
) -> tuple[BranchInput, ...]:
    """What each distorted branch that runs is given.

    Args:
        method: The method.
        inputs: What was traced of the call; None where it was not.
        sample: The prompt.
        decode: Tokens -> the text of each; None without a tokenizer.
    """
    branches = (*method.live_branches, *method.prompt_branches)
    return tuple(_given(branch, inputs, sample, decode) for branch in branches)


def _given(
    branch: Branch,
    inputs: TracedInputs | None,
    sample: int,
    decode: Callable[[Sequence[int]], list[str]] | None,
) -> BranchInput:
    modified: list[Modified] = [
        what for own in branch.distortions for what in CHANGES if what in own.modifies
    ]
    prompt = None
    if inputs is not None and branch.name in inputs.prompts and decode is not None:
        mask = inputs.token_mask[sample]
        ids = inputs.ids[sample][mask].tolist()
        image = set(inputs.ids[sample][inputs.image_index[sample] >= 0].tolist())
        prompt = compared(
            words_of(ids, image, decode),
            words_of(inputs.prompts[branch.name][sample], image, decode),
        )
    return BranchInput(
        branch.name,
        tuple(CHANGES[what] for what in dict.fromkeys(modified)),
        "; ".join(first_sentence(own) for own in branch.distortions),
        inputs is not None and branch.name in inputs.pixels,
        prompt,
    )


def words_of(
    ids: Sequence[int], image: set[int], decode: Callable[[Sequence[int]], list[str]]
) -> list[str]:
    """The text of each token; a run of image tokens is one piece that counts them."""
    pieces: list[str] = []
    run = 0
    for token, text in zip([*ids, None], [*decode(ids), ""], strict=True):
        if token in image:
            run += 1
            continue
        if run:
            pieces.append(f"[image: {run} token{'s' * (run > 1)}]")
            run = 0
        pieces.append(text)
    return pieces[:-1]


def compared(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What became of the pieces of a prompt."""
    found = []
    matcher: Any = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, i, j, k, m in matcher.get_opcodes():
        if what == "equal":
            found.append(("same", "".join(before[i:j])))
            continue
        if i < j:
            found.append(("removed", "".join(before[i:j])))
        if k < m:
            found.append(("added", "".join(after[k:m])))
    return tuple(found)

"""What methods did to an answer, in a few plain sentences made from its numbers."""

from cdkit.explanation.explained import (
    BY_CONSTRAINT,
    COMBINED,
    PLAIN,
    ExplainedAnswer,
    ExplainedPrompt,
    ExplainedStep,
)
from cdkit.methods.method import ORIGINAL

NAMED = 3
"""Changed tokens that a sentence names."""
MOVED = 0.005
"""Probabilities that differ by less are called equal."""


def sentences(found: ExplainedPrompt) -> list[str]:
    """A paragraph for each method, the plain one left out."""
    return [paragraph(answer) for answer in found.answers if answer.name != PLAIN]


def paragraph(answer: ExplainedAnswer) -> str:
    """What one method did."""
    if answer.refused:
        return f"{answer.name} did not run: {answer.refused.rstrip('.')}."
    if not answer.steps:
        return f"{answer.name} gave no token."
    count, changed = len(answer.steps), answer.changed
    if answer.columns == (PLAIN,):
        return f"{answer.name} answered with {_tokens(count)}. {' '.join(answer.notes)}"
    base = "the plain model" if answer.base == PLAIN else "its original branch"
    if not changed:
        return (
            f"{answer.name} changed none of {_tokens(count)}: given the same words before, {base} "
            f"prefers the same token each time. {_largest_shift(answer)}"
        )
    words = [_became(answer, number) for number in changed[:NAMED]]
    rest = len(changed) - NAMED
    named = ", ".join(words) + (f" and {rest} more" if rest > 0 else "")
    return (
        f"{answer.name} changed {len(changed)} of {_tokens(count)}: {named}. "
        f"{why(answer, changed[0])}"
    )


def why(answer: ExplainedAnswer, number: int) -> str:
    """How a method came to prefer another token at a step."""
    step = answer.steps[number]
    before, after = step.favourites[answer.base], step.favourites[answer.last]
    old, new = step.candidate(before), step.candidate(after)
    who = "plain" if answer.base == PLAIN else "the original branch"
    gave, too = (share(one.probabilities[answer.base]) for one in (old, new))
    told = [
        f"At token {number + 1} {who} gave {quoted(old.text)} {gave} and {quoted(new.text)} {too}."
    ]
    if ORIGINAL in answer.columns and answer.base == PLAIN:
        moved = abs(old.probabilities[ORIGINAL] - old.probabilities[PLAIN])
        if moved > MOVED:
            now, other = (share(one.probabilities[ORIGINAL]) for one in (old, new))
            told.append(
                f"The method changes its original branch, too: there {quoted(old.text)} has {now} "
                f"and {quoted(new.text)} {other}."
            )
    told.append(_by_contrast(answer, step))
    return " ".join(filter(None, told))


def _by_contrast(answer: ExplainedAnswer, step: ExplainedStep) -> str:
    """What the branches gave the old favourite, and what became of it."""
    old = step.candidate(step.favourites[answer.base])
    new = step.candidate(step.favourites[answer.last])
    if COMBINED not in answer.columns:
        return ""
    names = list(answer.branches)
    then = _became_of(answer, step, names)
    rise = f"{quoted(new.text)} has {share(new.probabilities[COMBINED])} and comes first."
    if not names:
        return f"Then {then.removeprefix('and ')}; {rise}"
    begin = f"The {names[0]} branch gave {quoted(old.text)} {share(old.probabilities[names[0]])}"
    for name in names[1:2]:
        begin += f", the {name} branch {share(old.probabilities[name])}"
    return f"{begin}, {then}; {rise}"


def _became_of(answer: ExplainedAnswer, step: ExplainedStep, names: list[str]) -> str:
    old = step.candidate(step.favourites[answer.base])
    end = old.probabilities[COMBINED]
    if old.removed_by:
        who = "the plausibility constraint" if old.removed_by == BY_CONSTRAINT else "the combiner"
        return f"and {who} removed it"
    start = old.probabilities[ORIGINAL]
    verb = "lowered" if end < start - MOVED else "raised" if end > start + MOVED else "left"
    more = [name for name in names if old.probabilities[name] > start]
    consistent = answer.contrastive and verb == "lowered" and len(more) == len(names) > 0
    if consistent:
        return f"more than the original one, so the contrast lowered it to {share(end)}"
    what = "the contrast" if answer.contrastive and names else "the method"
    into = "at" if verb == "left" else "to"
    return f"and {what} {verb} it {into} {share(end)}"


def _became(answer: ExplainedAnswer, number: int) -> str:
    step = answer.steps[number]
    old = step.candidate(step.favourites[answer.base])
    new = step.candidate(step.favourites[answer.last])
    return f"{quoted(old.text)} became {quoted(new.text)} (token {number + 1})"


def _largest_shift(answer: ExplainedAnswer) -> str:
    """The step at which the favourite's probability moved most."""
    shifts = []
    for number, step in enumerate(answer.steps):
        one = step.candidate(step.favourites[answer.last])
        start, end = one.probabilities[answer.base], one.probabilities[answer.last]
        shifts.append((abs(end - start), number, one.text, start, end))
    size, number, text, start, end = max(shifts)
    if size < MOVED:
        return "No probability moved by a hundredth."
    return (
        f"The largest shift is at token {number + 1}, {quoted(text)}: from {share(start)} to "
        f"{share(end)}."
    )


def quoted(text: str) -> str:
    """A token in quotation marks, what cannot be seen written out."""
    shown = text.strip(" ").replace("\n", "\u23ce").replace("\t", "\u21e5") or "\u2423"
    return f"\u201c{shown}\u201d"


def share(probability: float) -> str:
    """A probability in two digits."""
    if 0 < probability < 0.005:
        return "under 0.01"
    if 0.995 <= probability < 1:
        return "over 0.99"
    return f"{probability:.2f}"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"

"""What methods did to an answer, in a few plain sentences made from its numbers."""

from cdkit.explanation.explained import (
    BY_CONSTRAINT,
    COMBINED,
    PLAIN,
    ExplainedAnswer,
    ExplainedPrompt,
    ExplainedStep,
    parts_at,
)
from cdkit.methods.branch import ORIGINAL

NAMED = 3
"""Changed tokens that a sentence names."""
SHOWN_BRANCHES = 2
"""Branches whose numbers a sentence has."""
ACTS_IN_THE_MODEL = frozenset(
    {"calibrator", "readout", "loop", "interventions", "state_interventions"}
)
"""Places of parts that act in the original branch, too, or beside it."""
MOVED = 0.005
"""Probabilities that differ by less are called equal."""
PUSHED = 1e-3
"""Odds that grow by a smaller share were not pushed: logits are rounded."""


def column_name(answer: ExplainedAnswer, name: str) -> str:
    """What a page calls a column of an answer, or a branch: of a method that has one alone, the
    method's name."""
    if name == ORIGINAL and answer.last in (ORIGINAL, PLAIN):
        return answer.name if answer.last == ORIGINAL else PLAIN
    return "after" if name == COMBINED else name


def sentences(found: ExplainedPrompt) -> list[str]:
    """A paragraph for each method, the plain one left out."""
    plain = found.answers[0]
    return [paragraph(answer, plain) for answer in found.answers if answer.name != PLAIN]


def paragraph(answer: ExplainedAnswer, plain: ExplainedAnswer) -> str:
    """What one method did, beside the first answer of its page, which may be its own."""
    if answer.refused:
        reason = answer.refused.rstrip(".")
        if reason.startswith(f"{answer.name} "):
            reason = f"it {reason.removeprefix(answer.name).strip()}"
        return f"{answer.name} did not run: {reason}."
    if not answer.steps:
        return f"{answer.name} gave no token."
    count, changed = len(answer.steps), answer.changed
    if answer.columns == (PLAIN,):
        told = f"{answer.name} answered with {_tokens(count)}{_parts(answer, plain)}."
        return f"{told} {' '.join(answer.notes)}"
    base = "the plain model" if answer.base == PLAIN else "its original branch"
    what = "" if answer.takes_the_best else "the most probable token at "
    if not changed:
        return (
            f"{answer.name} changed {what}none of {_tokens(count)}: given the same words before, "
            f"{base} prefers the same token each time. {_largest_shift(answer)}"
        )
    words = [_became(answer, number) for number in changed[:NAMED]]
    rest = len(changed) - NAMED
    named = ", ".join(words) + (f" and {rest} more" if rest > 0 else "")
    return (
        f"{answer.name} changed {what}{len(changed)} of {_tokens(count)}: {named}. "
        f"{why(answer, changed[0])}"
    )


def _parts(answer: ExplainedAnswer, plain: ExplainedAnswer) -> str:
    """Where an answer without numbers of its own parts from the plain one."""
    at = parts_at(plain, answer)
    if at is None:
        return ", and they are those of the plain model's answer" if plain.steps else ""
    instead = f"has {quoted(plain.steps[at].text)}" if at < len(plain.steps) else "has ended"
    mine = quoted(answer.steps[at].text)
    where = f"at token {at + 1}: {mine}, where that {instead}"
    return f". It parts from the plain model's answer {where}"


def mechanism(answer: ExplainedAnswer) -> str:
    """How a method works, from what its parts say of themselves."""
    if answer.refused or not answer.steps:
        return ""
    told = []
    run = [given for given in answer.given if given.branch in answer.branches]
    if run:
        where = f"in a branch that distorts {' and '.join(run[0].changes) or 'nothing'}"
        if len(run) > 1:
            named = "; ".join(f"{own.branch}: {' and '.join(own.changes)}" for own in run)
            where = f"in {len(run)} distorted branches ({named})"
        end = "It then combines the predictions."
        if answer.contrastive:
            end = "It then pushes the prediction away from the distorted one."
        told.append(f"It predicts each token from the real input, and again {where}. {end}")
    told += [f"{part.words}." for part in answer.parts if part.place in ACTS_IN_THE_MODEL]
    return " ".join(told)


def why(answer: ExplainedAnswer, number: int) -> str:
    """How a method came to prefer another token at a step."""
    step = answer.steps[number]
    before, after = step.favourites[answer.base], step.favourites[answer.last]
    old, new = step.candidate(before), step.candidate(after)
    who = "plain" if answer.base == PLAIN else "the original branch"
    gave, too = pair(*(one.probabilities[answer.base] for one in (old, new)))
    told = [
        f"At token {number + 1} {who} gave {quoted(old.text)} {gave} and {quoted(new.text)} {too}."
    ]
    if ORIGINAL in answer.columns and answer.base == PLAIN:
        moved = abs(old.probabilities[ORIGINAL] - old.probabilities[PLAIN])
        if moved > MOVED:
            chooses = step.favourites[ORIGINAL] == after and COMBINED in answer.columns
            now, other = pair(*(one.probabilities[ORIGINAL] for one in (old, new)))
            where = "The method changes its original branch, too: there"
            if COMBINED not in answer.columns:
                where = f"With {answer.name}"
            told.append(
                f"{where} {quoted(old.text)} has {now} and {quoted(new.text)} {other}"
                + ("; that alone changes the choice." if chooses else ".")
            )
    told.append(_by_contrast(answer, step))
    return " ".join(filter(None, told))


def _by_contrast(answer: ExplainedAnswer, step: ExplainedStep) -> str:
    """What the branches gave both tokens, and what came out."""
    if COMBINED not in answer.columns:
        return ""
    old = step.candidate(step.favourites[answer.base])
    new = step.candidate(step.favourites[answer.last])
    told, leans = list[str](), list[bool]()
    for name in answer.branches:
        gave, too = old.probabilities[name], new.probabilities[name]
        told.append(f"the {name} branch {' and '.join(pair(gave, too))}")
        # what a contrast adds to the logits' difference has this sign
        leans.append(gave * new.probabilities[ORIGINAL] > too * old.probabilities[ORIGINAL])
    # an alpha of 0 adds nothing
    pushed = (
        new.probabilities[COMBINED] * old.probabilities[ORIGINAL]
        > (1 + PUSHED) * new.probabilities[ORIGINAL] * old.probabilities[COMBINED]
    )
    what = "the contrast" if answer.contrastive and told else "it"
    end, first = pair(*(one.probabilities[COMBINED] for one in (old, new)))
    after = f"After {what} {quoted(old.text)} has {end} and {quoted(new.text)} {first}."
    if old.removed_by:
        who = "plausibility constraint" if old.removed_by == BY_CONSTRAINT else "combiner"
        after = f"The {who} removed {quoted(old.text)}; {quoted(new.text)} then has {first}."
    if not told:
        return after.replace("After it", "In the end")
    gave_words = "; ".join(told[:SHOWN_BRANCHES]).replace("branch ", "branch gave them ", 1)
    begin = gave_words[:1].upper() + gave_words[1:]
    if answer.contrastive and leans == [True] and pushed and not old.removed_by:
        begin += (
            f": it leans to {quoted(old.text)} more than the original branch does, so the contrast "
            f"pushes towards {quoted(new.text)}"
        )
    return f"{begin}. {after}"


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


def pair(first: float, second: float) -> tuple[str, str]:
    """Two probabilities, in three digits where two would make them equal."""
    words = share(first), share(second)
    if words[0] == words[1] and first != second and min(first, second) >= 0.005:
        return f"{first:.3f}", f"{second:.3f}"
    return words


def share(probability: float) -> str:
    """A probability in two digits."""
    if 0 < probability < 0.005:
        return "under 0.01"
    if 0.995 <= probability < 1:
        return "over 0.99"
    return f"{probability:.2f}"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"

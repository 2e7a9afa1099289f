"""The one exception for errors that the user can correct, checks that raise it, and the warning."""

import errno
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args


class CdkitError(ValueError):
    """Bad input: the message says what was given, what is allowed and what to do.

    The command line prints it without a traceback and exits with status 1. Any other exception is
    a bug.
    """


class PromptError(CdkitError):
    """Some prompts of a batch cannot be answered; the others can, in a batch without them.

    Args:
        message: Says what happened, as every `CdkitError`.
        reasons: The index of each such prompt in the batch -> what happened there, with no word on
            where in the batch that was.
    """

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


class CdkitWarning(UserWarning):
    """Something that a user should know but need not correct; the command line prints one line."""


def failure(error: Exception) -> str:
    """What went wrong where a model was tried; of other libraries' errors, which speak of tensors
    that no user knows, the name alone."""
    if isinstance(error, CdkitError):
        return f"{error}"
    return f"the check fails with {type(error).__name__}"


def check_text(name: str, text: str) -> None:
    """Raise where `text` holds half of a surrogate pair, which is no character and has no bytes."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise CdkitError(
            f"{name} is no text: {text!a} holds half of a character, or a byte that is not "
            "UTF-8; write the whole character, in UTF-8"
        )


KINDS_OF_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path) -> None:
    """Check that a path is a file: a pipe would be waited for, and a device read for ever.

    Args:
        path: The path, which may be a link to a file.

    Raises:
        OSError: If there is nothing, or something else than a file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = KINDS_OF_FILES.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")


def check_choice(name: str, value: object, allowed: Any) -> None:
    """Check a parameter that takes one of a few values.

    Args:
        name: The parameter's name, for the message.
        value: The value given.
        allowed: A `Literal` type, whose members are the values allowed.

    Raises:
        CdkitError: If the value is not one of them.
    """
    if value not in get_args(allowed):
        choices = ", ".join(map(str, get_args(allowed)))
        raise CdkitError(f"{name} must be one of {choices}, got {value!r}")


LARGEST = 1e6
"""The largest parameter: beyond it the difference of two float32 logits has lost its digits, and
far beyond it their sum is infinite."""


def check_finite(name: str, value: object, *, low: float | int, above: bool = False) -> None:
    """Check a numeric parameter.

    Args:
        name: The parameter's name, for the message.
        value: The value given.
        low: The lowest value allowed.
        above: Whether the value must be greater than `low`, not equal to it.

    Raises:
        CdkitError: If the value is no number (a bool is none), not finite, too low, or larger
            than `LARGEST`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    x = float(value) if number else math.nan  # type: ignore[arg-type]
    if not math.isfinite(x) or x < low or (above and x == low):
        sign = ">" if above else ">="
        raise CdkitError(f"{name} must be a finite number {sign} {low:g}, got {value!r}")
    if x > LARGEST:
        raise CdkitError(
            f"{name} must be at most {LARGEST:g}, got {value!r}: beyond that float32 logits lose "
            "their digits or overflow"
        )


COLDEST = 1e-4


def check_temperature(name: str, value: object) -> None:
    """Raise unless logits can be divided by `value`, and it still draws."""
    check_finite(name, value, low=0, above=True)
    if float(value) < COLDEST:  # type: ignore[arg-type]
        raise CdkitError(
            f"{name} must be at least {COLDEST:g}, got {value!r}: below that logits overflow and "
            "nothing is drawn any more; for the best token use greedy search"
        )

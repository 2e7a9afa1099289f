"""Usage errors, which end every command with exit status 2, and options that are given twice."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

from cdkit.errors import CdkitError
from cdkit.registry import in_any_case, unknown

USAGE = 2
"""The exit status of a usage error, which is Click's too; all other errors have 1."""


class UsageError(CdkitError):
    """The options alone are wrong: one is missing, has a value that it cannot have, or excludes
    another.
    """


@contextmanager
def usage() -> Iterator[None]:
    """The block checks options and reads nothing else: what it refuses is a usage error."""
    try:
        yield
    except CdkitError as error:
        raise UsageError(str(error)) from None


def meant_name(what: str, given: str, known: Iterable[str]) -> str:
    """The known name that is given, in upper or lower case; a usage error where there is none."""
    names = tuple(dict.fromkeys(known))
    found = in_any_case(given, names)
    if found is None:
        raise UsageError(unknown(what, given, names))
    return found


def check_name(what: str, given: str, known: Iterable[str]) -> None:
    """Raise a usage error unless `given` is one of the names that an option takes."""
    if given not in (names := tuple(known)):
        raise UsageError(unknown(what, given, names))


class OnceCommand(TyperCommand):
    """A command that refuses an option of one value that is given twice.

    Click takes the last one and says nothing. Its help names no value for an option that takes
    none, and no Python type for one that is repeated (Typer: `<bool>`, `<list[str]>`).
    """

    def get_params(self, ctx: Any) -> Any:
        found: list[Any] = super().get_params(ctx)
        for option in found:
            if option.param_type_name == "option" and option.metavar is None:
                if getattr(option, "is_flag", False):
                    option.metavar = ""
                elif option.multiple:
                    option.metavar = "TEXT"
        return found

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        order: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option, times in Counter(order).items():
            takes_one = option.param_type_name == "option" and not option.multiple
            if times > 1 and takes_one and not getattr(option, "is_flag", False):
                raise typer.BadParameter(
                    f"it is given {times} times, and takes one value: give it once",
                    ctx=ctx,
                    param=option,
                )
        return super().parse_args(ctx, args)


def refuse_repeats(app: typer.Typer) -> None:
    """From here on, every command of the application is a `OnceCommand`."""
    for command in app.registered_commands:
        command.cls = OnceCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)

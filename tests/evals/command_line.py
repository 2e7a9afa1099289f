"""The command line called as a user calls it."""

from pathlib import Path

from typer.testing import CliRunner, Result

from cdkit.evals import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "150"})


def refused(*arguments: str | Path) -> str:
    """The one line on stderr of a command that the user can mend."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]

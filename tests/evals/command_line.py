"""The command line called as a user calls it."""

from pathlib import Path

from typer.testing import CliRunner, Result

from cdkit.evals import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "150"})


def refused(*arguments: str | Path, status: int = 1) -> str:
    """The one line on stderr of a command that the user can mend; a usage error has status 2."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]

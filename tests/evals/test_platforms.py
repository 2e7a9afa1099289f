"""What other systems lack is not needed: a run, a score and an answer without POSIX's own parts.

In a process of its own cdkit's modules, and no others, see `os`, `signal` and `socket` as they are
on Windows, and every file that they open without an encoding is an error.
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = """
import builtins, importlib, os, pkgutil, signal, socket, sys, types, warnings

ABSENT = {"fcntl", "grp", "pwd", "resource", "termios", "readline", "pty", "syslog"}


class Less(types.ModuleType):
    def __init__(self, module, lacking, **others):
        super().__init__(module.__name__)
        self._module, self._lacking = module, {*lacking.split()}
        self.__dict__.update(others)

    def __getattr__(self, name):
        if name in self._lacking:
            raise AttributeError(f"{self.__name__} has no {name} on Windows")
        return getattr(self._module, name)


def opening(path, *args, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, *args, **options)


LESS = {
    "os": Less(
        os,
        "fork forkpty register_at_fork sysconf nice killpg setsid getuid geteuid getgid mkfifo "
        "O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_SYNC sched_getaffinity getloadavg chown "
        "uname kill statvfs readlink fchmod fdatasync posix_fallocate sendfile sync",
        name="nt", open=opening,
    ),
    "signal": Less(
        signal,
        "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE SIGQUIT SIGTSTP SIGCONT SIG_BLOCK "
        "SIG_SETMASK SIG_UNBLOCK pthread_sigmask pthread_kill alarm setitimer sigwait",
    ),
    "socket": Less(socket, "AF_UNIX SO_REUSEPORT"),
}
stock = builtins.__import__


def importing(name, globals=None, *args, **options):
    ours = ((globals or {}).get("__name__") or "").startswith("cdkit")
    if ours and name in ABSENT:
        raise ModuleNotFoundError(name)
    found = stock(name, globals, *args, **options)
    return LESS.get(name, found) if ours else found


builtins.__import__ = importing
warnings.filterwarnings("error", category=EncodingWarning, module=r"cdkit(\\.|$)")
import cdkit
for module in pkgutil.walk_packages(cdkit.__path__, "cdkit."):
    if "lmms_eval" not in module.name and "triton" not in module.name:
        importlib.import_module(module.name)
assert cdkit.evals.runner.stopping.os.name == "nt"

from typer.testing import CliRunner
from cdkit.evals import cli

for line in sys.stdin.read().splitlines():
    result = CliRunner().invoke(cli.app, line.split("|"))
    if result.exit_code:
        raise SystemExit(f"{line}: {result.exit_code}: {result.output} {result.exception!r}")
print("all done")
"""


def test_without_what_posix_alone_has(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    commands = [
        "data|micro-world|data|--images|1",
        "data|check|data",
        "eval|--method|vcd|--bench|pope|--data|data|--only|pope_micro_random|--name|vcd",
        "eval|--name|vcd|--resume",
        "score|pope|--questions|data/micro_pope_random.json|--answers|runs/vcd/predictions.jsonl",
        "generate|--image|a.png|--prompt|is there a cat ?|--max-new-tokens|2",
        "list|--cite",
    ]
    ran = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", SCRIPT],
        input="\n".join(commands),
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0 and ran.stdout.endswith("all done\n"), ran.stdout + ran.stderr
    written = (tmp_path / "runs" / "vcd" / "predictions.jsonl").read_bytes()
    assert b"\r" not in written and json.loads(written.splitlines()[0])["id"]
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if set(name) & set('<>:"\\|?*')]


def test_the_linter_asks_for_encodings() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"PLW1514"' in text and "explicit-preview-rules = true" in text

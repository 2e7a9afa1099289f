"""A run's folder: begun whole or not at all, held by one run at a time, gone on with as it was."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from cdkit.errors import CdkitError, check_file, check_text
from cdkit.evals.runner.checked import TABLE, TEXT, checked
from cdkit.evals.runner.fingerprints import changed_files, differing
from cdkit.evals.runner.journal import not_written
from cdkit.evals.runner.journal_scores import write_json
from cdkit.evals.runner.locking import locked
from cdkit.evals.runner.run_settings import OPTIONAL, RunSettings

SETTINGS, LOCK, JOURNAL = "settings.json", ".lock", "journal"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a disk says that takes no more."""
AGE = 3600.0
"""Seconds after which a draft is of a killed run, where processes cannot be asked."""
PREDICTIONS, METRICS, MANIFEST = "predictions.jsonl", "metrics.json", "manifest.json"


@dataclass(frozen=True)
class Fingerprints:
    """What the settings name, by content: with other content the answers would be others."""

    method: str
    data: Mapping[str, str]
    """Part -> hash of its questions."""
    model: Mapping[str, str]
    """File -> SHA-256, as `model_files` gives them; of a model from the hub its revision."""

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "data": dict(self.data), "model": dict(self.model)}


def folder_of(output: Path, name: str) -> Path:
    """The folder NAME inside OUTPUT."""
    if name in ("", ".", "..") or Path(name).name != name or name.startswith("."):
        raise CdkitError(f"--name must be the name of a folder inside --output, got {name!r}")
    check_text("--name", name)
    return output / name


def read_settings(folder: Path) -> dict[str, Any]:
    """What a run was begun with, as plain data: `settings` and `identity`."""
    path = folder / SETTINGS
    try:
        check_file(path)
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CdkitError(f"{folder} holds no run of cdkit eval (no {SETTINGS})") from None
    except ValueError as error:
        raise CdkitError(f"{path} is not valid JSON ({error}): restore it") from None
    advice = "it is not what cdkit eval writes: restore it, or begin anew under another --name"
    found = checked(data, {"settings": TABLE, "identity": TABLE}, str(path), advice)
    identity = {"method": TEXT, "data": TABLE, "model": TABLE}
    checked(found["identity"], identity, f"{path}: identity", advice)
    return found


@contextmanager
def opened(
    folder: Path,
    settings: RunSettings,
    identity: Fingerprints,
    *,
    resume: bool,
    checkpoint: Mapping[str, Any],
) -> Iterator[None]:
    """The folder, new or gone on with, locked while the block runs.

    `checkpoint` holds what the checkpoint's generation config decides; it is kept beside the
    settings.

    Where the block fails before the first answer of a new folder, its name is free again.
    """
    if folder.exists() and not resume:
        raise CdkitError(
            f"{folder} is there already: --resume goes on with the run in it, another --name "
            "begins a new one"
        )
    wanted = {
        "settings": settings.to_dict(),
        "checkpoint": {"generation": dict(checkpoint)},
        "identity": identity.to_dict(),
    }
    new = not folder.exists()
    if new:
        _begin(folder, wanted)
    with ExitStack() as after, locked(folder / LOCK):
        _check_same(folder, read_settings(folder), json.loads(json.dumps(wanted)))
        try:
            yield
        except BaseException as error:
            if _has_answers(folder):
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    error.add_note(
                        f"what was answered is kept in {folder}: go on with --resume --name "
                        f"{folder.name}"
                    )
            elif new:
                shutil.rmtree(folder, ignore_errors=True)
                after.callback(_remove_rest, folder)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise not_written(folder, error) from error
            raise


def _remove_rest(folder: Path) -> None:
    """Remove the lock file, which Windows keeps while it is open; not a run begun since."""
    if not (folder / SETTINGS).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, content: Mapping[str, Any]) -> None:
    """A folder that is there has its settings: it is made under another name, and renamed."""
    _sweep(folder.parent)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    (draft / JOURNAL).mkdir(parents=True)
    write_json(draft / SETTINGS, content)
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        raise CdkitError(f"another run has begun {folder} at this moment: try again") from None


def _sweep(output: Path) -> None:
    """Remove what is left of runs that were killed before they had a folder."""
    for draft in output.glob(".*.*"):
        name = draft.suffix.removeprefix(".")
        if not (name.isascii() and name.isdigit() and draft.is_dir()):
            continue
        empty = {p.name for p in draft.rglob("*")} <= {JOURNAL, SETTINGS, f".{SETTINGS}.draft"}
        if empty and not _at_work(int(name), draft):
            shutil.rmtree(draft, ignore_errors=True)


def _at_work(process: int, draft: Path) -> bool:
    """Whether a process of this number lives and is another than this one."""
    if os.name == "nt":  # where asking with signal 0 would end it; a draft takes less than a second
        return time() - draft.stat().st_mtime < AGE
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return process != os.getpid()


def _has_answers(folder: Path) -> bool:
    """Whether a journal has more than its head."""
    return any(path.read_bytes().count(b"\n") > 1 for path in (folder / JOURNAL).glob("*.jsonl"))


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # a run that was begun before an option was there had its default
    asked = {**json.loads(json.dumps(OPTIONAL)), **before["settings"]}
    changes = [
        f"--{key.replace('_', '-')} was {_shown(old)}, is {_shown(new)}"
        for key, (old, new) in differing(asked, now["settings"]).items()
    ]
    if not changes:
        was, now_is = before["identity"], now["identity"]
        parts = differing(was["data"], now_is["data"])
        changes += [f"the questions of {name} are others" for name in parts]
        changes += [
            f"{name} of the model is another"
            for name in changed_files(was["model"], now_is["model"])
        ]
        if was["method"] != now_is["method"]:
            changes.append("the method's parameters are others")
    if changes:
        raise CdkitError(
            f"{folder} was begun with other settings: {'; '.join(changes)}. --resume goes on with "
            "the same alone (batch size, devices and workers may differ): give them again, or "
            "another --name"
        )


def _shown(value: object) -> str:
    return "not given" if value is None or value == [] or value == {} else json.dumps(value)

"""A run's folder: begun whole or not at all, held by one run at a time, gone on with as it was."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from cdkit.errors import CdkitError, check_file, check_text
from cdkit.evals.runner.checked import TABLE, checked
from cdkit.evals.runner.fingerprints import changed_files, differing
from cdkit.evals.runner.journal import not_written
from cdkit.evals.runner.locking import locked
from cdkit.evals.runner.whole_files import as_json, write_json

SETTINGS, LOCK, JOURNAL, WORLD = "settings.json", ".lock", "journal", "world"
Content = Mapping[str, Any]
"""What settings.json holds: `settings`, what the `checkpoint` decides, and the `identity` of all
that the settings name."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a disk says that takes no more."""
FREE = frozenset(
    (
        "batch",
        "threads",
        "resamples",
        "check",
        "summary",
        "tables",
        "gallery",
        "cost",
        "left_out",
        "published",
    )
)
"""Settings that change no answer: a run may go on with others."""
OF_PAPER = frozenset(("name", "summary", "source", "paper", "unmatched"))
"""What a protocol's file says beside settings."""
OPTIONS: Mapping[str, str] = {
    "models": "--model",
    "decode": "--mode",
    "num_beams": "--beams",
}
"""Settings whose option has another name."""
AGE = 3600.0
"""Seconds after which a draft is of a killed run, where processes cannot be asked."""
PREDICTIONS, METRICS, MANIFEST = "predictions.jsonl", "metrics.json", "manifest.json"


@dataclass(frozen=True)
class Fingerprints:
    """What the settings name, by content: with other content the answers would be others.

    Args:
        methods: Method's name -> hash.
        data: Part -> hash of its questions.
        models: Model -> file -> SHA-256, as `model_files` gives them; of a model from the hub its
            revision.
    """

    methods: Mapping[str, str]
    data: Mapping[str, str]
    models: Mapping[str, Mapping[str, str]]

    def to_dict(self) -> dict[str, Any]:
        models = {name: dict(files) for name, files in self.models.items()}
        return {"methods": dict(self.methods), "data": dict(self.data), "models": models}


def folder_of(output: Path, name: str) -> Path:
    """The folder NAME inside OUTPUT."""
    if name in ("", ".", "..") or Path(name).name != name or name.startswith("."):
        raise CdkitError(f"--name must be the name of a folder inside --output, got {name!r}")
    check_text("--name", name)
    return output / name


def read_settings(folder: Path) -> dict[str, Any]:
    """What a run was begun with, as plain data: `settings` and `identity`.

    Raises:
        CdkitError: There is no such file, it is damaged, or an older cdkit wrote it.
    """
    path = folder / SETTINGS
    try:
        check_file(path)
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CdkitError(f"{folder} holds no run of cdkit eval (no {SETTINGS})") from None
    except (ValueError, RecursionError) as error:
        raise CdkitError(f"{path} is not valid JSON ({error}): restore it") from None
    advice = "it is not what cdkit eval writes: restore it, or begin anew under another --name"
    found = checked(data, {"settings": TABLE, "identity": TABLE}, str(path), advice)
    if "method" in found["identity"]:
        raise CdkitError(
            f"{folder} was begun by an older cdkit: finish the run with that version, or begin "
            "anew under another --name"
        )
    identity: Mapping[str, str] = {"methods": TABLE, "data": TABLE, "models": TABLE}
    checked(found["identity"], identity, f"{path}: identity", advice)
    return found


@contextmanager
def opened(folder: Path, content: Callable[[Path], Content], *, resume: bool) -> Iterator[None]:
    """The folder, new or gone on with, locked while the block runs.

    Where the block fails before the first answer of a new folder, its name is free again.

    Args:
        folder: The run's folder.
        content: Gives what settings.json is to hold. It is given the folder in which the run's own
            files are to lie, and may write there; of a new folder it is the draft of it.
        resume: Whether to go on with a run that is there.

    Raises:
        CdkitError: The folder is there and `resume` is false, another run writes in it, or it was
            begun with other settings.
    """
    if folder.exists() and not resume:
        raise CdkitError(
            f"{folder} is there already: --resume goes on with the run in it, another --name "
            "begins a new one"
        )
    new = not folder.exists()
    if new:
        _begin(folder, content)
    with ExitStack() as after, locked(folder / LOCK):
        if not new:
            before = read_settings(folder)
            _check_same(folder, before, json.loads(as_json(content(folder))))
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


def _begin(folder: Path, content: Callable[[Path], Content]) -> None:
    """A folder that is there has its settings: it is made under another name, and renamed."""
    _sweep(folder.parent)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    (draft / JOURNAL).mkdir(parents=True)
    try:
        write_json(draft / SETTINGS, content(draft))
        try:
            draft.rename(folder)
        except OSError:
            raise CdkitError(f"another run has begun {folder} at this moment: try again") from None
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _sweep(output: Path) -> None:
    """Remove what is left of runs that were killed before they had a folder."""
    for draft in output.glob(".*.*"):
        name = draft.suffix.removeprefix(".")
        if not (name.isascii() and name.isdigit() and draft.is_dir()):
            continue
        ours = {p.name for p in draft.iterdir()} <= {JOURNAL, WORLD, SETTINGS, f".{SETTINGS}.draft"}
        if ours and not _at_work(int(name), draft):
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
    was, now_is = dict(before["settings"]), dict(now["settings"])
    names = [", ".join(table["methods"]) for table in (was, now_is)]
    if names[0] != names[1]:
        for table, shown in zip((was, now_is), names, strict=True):
            table["method"] = shown
            del table["methods"]
    was, now_is = flat(was), flat(now_is)
    changes = [
        f"{_option(key)} was {_shown(old)}, is {_shown(new)}"
        for key, (old, new) in differing(was, now_is).items()
        if key.partition(".")[0] not in FREE
    ]
    if not changes:
        one, two = before["identity"], now["identity"]
        parts = differing(one["data"], two["data"])
        changes += [f"the questions of {name} are others" for name in parts]
        for model, (files, others) in differing(one["models"], two["models"]).items():
            which = "the model" if len(two["models"]) == 1 else f"the model {model}"
            changes += [
                f"{name} of {which} is another" for name in changed_files(files or {}, others or {})
            ]
        decided = [flat(content.get("protocol", {})) for content in (before, now)]
        changes += [
            f"{key} of the protocol was {_shown(old)}, is {_shown(new)}"
            for key, (old, new) in differing(*decided).items()
            if key.partition(".")[0] not in OF_PAPER
        ]
        methods = differing(one["methods"], two["methods"])
        changes += [f"the parameters of the method {name} are others" for name in methods]
    if changes:
        raise CdkitError(
            f"{folder} was begun with other settings: {'; '.join(changes)}. --resume goes on with "
            "the same alone (batch size, devices and workers may differ): give them again, or "
            "another --name"
        )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys; an empty one has no key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def _option(key: str) -> str:
    """The option that sets a key of the settings, where there is one."""
    return OPTIONS.get(key, key if "." in key else f"--{key.replace('_', '-')}")


def _shown(value: object) -> str:
    return "not given" if value is None or value == [] or value == {} else json.dumps(value)

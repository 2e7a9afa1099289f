"""A run's folder that was moved, or is read from another working directory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def with_paths_of_now(manifest: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The manifest, with paths into the run's former folder pointing into `folder`.

    A grid draws its world into its own folder, so these files move with it. Only files that are
    gone from where the manifest says they are looked for; who reads one compares its digest.

    Args:
        manifest: What the run wrote down.
        folder: Where the run's folder is now.

    Returns:
        `manifest` itself where every file is in its place, or none is found in `folder`.
    """
    sources = (
        path
        for part in manifest["parts"].values()
        for path in part["benchmark"]["sources"]
        if not Path(path).exists()
    )
    former = next(filter(None, (_former_folder(path, folder) for path in sources)), None)
    if former is None:
        return manifest
    moved: Mapping[str, Any] = _moved(manifest, former, str(folder))
    return moved


def _former_folder(path: str, folder: Path) -> str | None:
    """What of a path is the run's former folder, if the rest is a file in `folder`."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        if folder.joinpath(*parts[count:]).is_file():
            return str(Path(*parts[:count]))
    return None


def _moved(value: Any, former: str, folder: str) -> Any:
    if isinstance(value, dict):
        return {_moved(k, former, folder): _moved(v, former, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(each, former, folder) for each in value]
    if isinstance(value, str):
        # where files have relative paths, the folder of images may have an absolute one
        before, found, rest = f"{os.sep}{value}".partition(
            f"{os.sep}{former.lstrip(os.sep)}{os.sep}"
        )
        if found and (not before or not os.path.isabs(former)):
            return str(Path(folder, rest))
    return value

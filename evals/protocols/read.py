"""Protocols from TOML files: the packaged ones by name, any other by its path."""

import tomllib
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.protocols.protocol import Protocol, protocol_of
from cdkit.registry import UnknownNameError, unknown

CONFIGS = Path(__file__).parent / "configs"


def packaged() -> dict[str, Path]:
    """The protocols that come with cdkit.

    Returns:
        Name -> file, sorted by name.
    """
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def read_protocol(name_or_path: str | Path) -> Protocol:
    """Read a protocol.

    Args:
        name_or_path: The name of a packaged protocol, or the path of a TOML file. A list of images
            that the file names is searched beside it.

    Returns:
        The protocol.

    Raises:
        UnknownNameError: No packaged protocol has the name, or the file has an unknown key.
        CdkitError: The file cannot be read, is no TOML, or holds a value that is not allowed.
    """
    path = _find(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CdkitError(f"cannot read the protocol {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CdkitError(f"{path} is not TOML: {error}") from None
    try:
        return protocol_of({"name": path.stem} | _with_lists(table, path.parent), str(path))
    except UnknownNameError as error:
        raise UnknownNameError(_located(path, error)) from None
    except CdkitError as error:
        raise CdkitError(_located(path, error)) from None


def _located(path: Path, error: CdkitError) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def _find(name_or_path: str | Path) -> Path:
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise CdkitError(f"a protocol is a name or a path of a TOML file, got {name_or_path!r}")
    files, path = packaged(), Path(name_or_path)
    if str(name_or_path) in files:
        return files[str(name_or_path)]
    if path.suffix != ".toml" and path.parent == Path(".") and not path.is_file():
        raise UnknownNameError(
            f"{unknown('protocol', str(name_or_path), files)} A protocol of your own is a path to "
            "a .toml file"
        )
    return path


def _with_lists(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the paths of image lists, which stand relative to the protocol's file."""
    found = dict(table)
    if isinstance(found.get("image_list"), str):
        listed = folder / found["image_list"]
        if not listed.is_file():
            raise CdkitError(f"image_list names {found['image_list']!r}, and {listed} is no file")
        found["image_list"] = str(listed)
    for name in ("models", "benchmarks"):
        if isinstance(found.get(name), dict):
            found[name] = {
                key: _with_lists(section, folder) if isinstance(section, dict) else section
                for key, section in found[name].items()
            }
    return found

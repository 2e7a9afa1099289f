"""The versions of what a result was made with."""

import importlib.metadata
import platform


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages, as installed."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}

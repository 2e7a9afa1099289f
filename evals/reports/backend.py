"""matplotlib's backend as the environment names it: a notebook's may not be installed here."""

import importlib.util
import os
from contextlib import suppress


def usable_backend() -> None:
    """Take MPLBACKEND out of the environment where matplotlib is there, but not with it.

    Where it can be had it stays the user's choice. Other libraries (Lightning's metrics) import
    matplotlib too, and so do the processes that this one starts.
    """
    if "MPLBACKEND" not in os.environ or importlib.util.find_spec("matplotlib") is None:
        return
    name = os.environ.pop("MPLBACKEND")
    import matplotlib

    with suppress(ValueError):
        matplotlib.rcParams["backend"] = name
        os.environ["MPLBACKEND"] = name

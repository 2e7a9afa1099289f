"""matplotlib's backend as the environment names it: a notebook's may not be installed here."""

import os
from contextlib import suppress


def usable_backend() -> None:
    """Take MPLBACKEND out of the environment where matplotlib cannot be imported with it.

    Where it can be had it stays the user's choice. Other libraries (Lightning's metrics) import
    matplotlib too, and so do the processes that this one starts.
    """
    name = os.environ.pop("MPLBACKEND", None)
    if name is None:
        return
    import matplotlib

    with suppress(ValueError):
        matplotlib.rcParams["backend"] = name
        os.environ["MPLBACKEND"] = name

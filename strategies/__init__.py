"""One file a method. Reachable as cdkit.strategies, and by no second name."""

if __name__ != "cdkit.strategies":
    raise ImportError(
        f"import cdkit.strategies, not {__name__}: a second copy would double-register"
    )

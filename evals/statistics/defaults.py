"""Defaults that need no import, so that `cdkit --help` stays quick."""

RESAMPLES = 2000
"""How many bootstrap resamples an interval is made from."""

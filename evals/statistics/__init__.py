"""Intervals, tests and power for the difference of two runs on the same questions."""

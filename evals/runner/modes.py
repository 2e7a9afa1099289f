"""The decode modes of a run and the name of the plain method; imports nothing."""

GREEDY, SAMPLE, BEAM = DECODE = ("greedy", "sample", "beam")
PLAIN = "plain"
"""The method that every difference is taken to."""

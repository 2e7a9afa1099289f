"""The words that runs, tables and the command line share: decode modes, and the plain method."""

GREEDY, SAMPLE, BEAM = DECODE = ("greedy", "sample", "beam")
PLAIN = "plain"
"""The method that every difference is taken to."""

"""What runs, tables and the command line share, and needs no import: decode modes, the plain
method, a default."""

GREEDY, SAMPLE, BEAM = DECODE = ("greedy", "sample", "beam")
PLAIN = "plain"
"""The method that every difference is taken to."""
RESAMPLES = 2000
"""Of the bootstrap behind an interval."""

"""The benchmarks: a file for each, and what several of them share."""

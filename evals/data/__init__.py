"""A user's data folder: which benchmarks are in it, in which known versions, and whether whole."""

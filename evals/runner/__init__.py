"""Runs a model over questions: batches, journal, resuming, and `cdkit eval`."""

"""Answers the questions of a run: batches, processes, journal and resuming."""

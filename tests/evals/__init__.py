"""Tests of the evaluation side; a package, so that they share small_run."""

"""Tests of cdkit.explanation."""

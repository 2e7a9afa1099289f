"""Directions from demonstrations: pairs of captions, their states in a model, the file."""

"""Combiners: how the branches' logits become the logits that `generate` reads."""

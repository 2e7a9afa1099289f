"""Readouts: logits of inner layers of the original branch."""

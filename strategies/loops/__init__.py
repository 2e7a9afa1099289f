"""Decode loops of methods that must take tokens back."""

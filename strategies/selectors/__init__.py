"""Selectors: which cells of the cross-modal attention a distortion acts on."""

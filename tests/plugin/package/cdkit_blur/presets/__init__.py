"""Presets of this package: one TOML file each."""

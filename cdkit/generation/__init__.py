"""One call of `generate` with a method attached, in the order it happens."""

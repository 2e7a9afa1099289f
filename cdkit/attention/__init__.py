"""One attention layer: its context, its masks, the text rows that a method changes."""

"""One attention layer: what it is told, its masks, the text rows that a method changes."""

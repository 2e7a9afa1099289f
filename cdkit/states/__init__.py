"""Hidden states that a method changes or reads: where they are, and what is done there."""

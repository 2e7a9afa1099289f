"""What a run of a model over questions is made of, whichever command asks for it."""

"""Find out about a model by running it: its rotary embedding, and whether an adapter fits."""

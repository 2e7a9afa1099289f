"""What is found out about a model by running it: its rotary embedding, and whether an adapter fits."""

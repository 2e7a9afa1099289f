"""A model's parts found and an adapter tried out, by running them."""

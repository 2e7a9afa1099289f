"""Model families, each on a tiny random model of the stock class."""

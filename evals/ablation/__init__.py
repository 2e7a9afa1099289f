"""The ablation: a grid of methods and benchmarks, run, compared and reported."""

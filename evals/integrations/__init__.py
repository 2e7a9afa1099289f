"""cdkit inside the evaluation harnesses of others, a package for each harness."""

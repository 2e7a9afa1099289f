"""Constraints: which tokens stay candidates, by the original logits."""

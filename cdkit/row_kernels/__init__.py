"""Fused kernels of single tensors: nothing here knows of methods or of prompts."""

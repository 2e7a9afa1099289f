"""A method as a repository that Hugging Face's `generate(custom_generate=...)` runs."""

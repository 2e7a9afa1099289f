"""The engine under Hugging Face's own `generate`, for every preset alike."""

"""The port of the first Qwen-VL."""

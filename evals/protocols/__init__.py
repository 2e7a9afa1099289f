"""Protocols: all around a method that moves a number, such as prompts, decoding and parsers."""

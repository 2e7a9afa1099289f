"""The plan of a prompt, and what may be skipped."""

"""What a method is: its parts put together, and presets read from files."""

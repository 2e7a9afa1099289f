"""Finished runs side by side: are they comparable, what differs, what could have been seen."""

"""The faults of the field's public code: one test each, with the faulty variant in it."""

"""Schedules: how strongly a method contrasts at each step."""

"""`cdkit compare`: finished runs side by side, if they are comparable."""

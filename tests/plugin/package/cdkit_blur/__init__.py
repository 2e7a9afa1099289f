"""A plug-in for cdkit."""

"""What a plug-in may be: one file an interface."""

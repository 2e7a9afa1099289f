"""One answer, explained: what a method did to it, token by token, as numbers and as a page."""

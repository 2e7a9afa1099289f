"""What several families share: how images become tokens, and where parts of a model are."""

"""Papers that several files cite."""

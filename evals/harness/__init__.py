"""cdkit's methods inside harnesses of others. Each is imported by its harness alone."""

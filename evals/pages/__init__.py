"""Pages made from the registries: `cdkit list`, docs/methods.md and docs/models.md."""

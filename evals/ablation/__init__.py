"""What a run asks, and what its answers give: `grid_run` runs `cdkit eval` and `cdkit ablate`."""

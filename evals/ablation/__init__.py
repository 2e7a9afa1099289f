"""What a run asks (a grid), and what its answers give: `grid_run` runs `cdkit eval` and `cdkit ablate`."""

"""From tallies to tables, plots and pages, for ablations and comparisons alike."""

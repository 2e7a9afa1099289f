"""cdkit's engine against plain computations written from the equations of the methods."""

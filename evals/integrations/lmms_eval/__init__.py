"""An lmms-eval model that runs its tasks under any method; only lmms-eval imports it."""

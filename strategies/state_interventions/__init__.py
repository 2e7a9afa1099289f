"""State interventions: changes of hidden states in chosen branches, the original one too."""

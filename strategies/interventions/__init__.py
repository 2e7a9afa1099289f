"""Interventions: changes of the attention in chosen branches, the original one too."""

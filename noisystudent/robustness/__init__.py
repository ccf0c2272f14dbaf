"""Robustness tests: corruptions, perturbations and attacks, and the measures computed from them."""

"""Noisy Student self-training."""

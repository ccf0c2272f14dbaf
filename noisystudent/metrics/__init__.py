"""Metrics of predictions: accuracy, calibration, paired statistics, the verdict and its reasons."""

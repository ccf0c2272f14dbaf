"""Run a matrix of configurations and seeds, make shared stages only once, and write one table of results."""

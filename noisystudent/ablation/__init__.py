"""A matrix of recipes and seeds: read, run with what they share computed once, and told as one table."""

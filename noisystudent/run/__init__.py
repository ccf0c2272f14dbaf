"""The run directory: how its files are written and named, its stages, and which stages must run again."""

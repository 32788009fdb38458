"""Runs that are killed and resumed have the result of an uninterrupted run: `python -m tests.soak --kills 50`."""

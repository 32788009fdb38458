"""Runs that are killed again and again end as one that nothing disturbed: `python -m tests.soak --kills 50`."""

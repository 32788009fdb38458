"""Damaged files: `targets` lists what is opened, `mutations` damages it."""

"""Whole commands in processes of their own, and whole runs on small models."""

"""Commands in separate processes, and complete runs on small models."""

"""MiniLMv2 from the command line: make a small, fast encoder from a big one (arXiv 2012.15828)."""

__version__ = "0.1.0"

"""What a user may set: name, type, default, meaning and command line flag of every setting, each declared once.

This package does not know what the settings do, and imports no torch. It hands out a settings model for each command
(`tokenize`, `distill`, `resume`, `export`), `load` (settings from files, `--set` and flags), `validation` (messages
about wrong values) and `flags` (how a setting is typed).
"""

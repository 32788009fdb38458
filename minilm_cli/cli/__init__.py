"""The command line: a module for each command, options, help, console and signals. Only it knows typer and rich.

It does not know how anything is computed. It hands out `app.main`.
"""

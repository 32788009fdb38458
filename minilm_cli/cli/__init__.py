"""The command line: one module a command, options, help, console, signals and exit statuses. Only it knows typer and rich.

It does not know how anything is computed. It hands out `app.main`.
"""

"""The command line: commands, messages, progress, exit statuses. The only room that knows typer and rich.

It does not know how anything is computed. It hands out `app.main`.
"""

"""The command line: options, output, and the messages for mistakes of the user."""

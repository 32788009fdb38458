"""The commands as a user types them: options, output, and what is said when something is wrong."""

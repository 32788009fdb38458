"""What every other room builds on: errors, outputs that are complete or absent, locks, JSON, seeds, progress.

It does not know what minilm does. It hands out `errors` (what a user is told), `atomic` (`staged`, `renewed`: build
under a temporary name, rename when complete), `locks`, `jsonio`, `checksums`, `seeding.derive` and the `Progress`
protocol. Standard library and pydantic only.
"""

"""What every other package builds on. It does not know what minilm does.

It hands out `errors`, `atomic` (outputs that are complete or absent), `overwrite` (which existing outputs may be
replaced), `write_errors`, `packages`, `locks`, `jsonio`, `checksums`, `seeding.derive` and the `Progress` protocol. It
imports the standard library, pydantic and safetensors only.
"""

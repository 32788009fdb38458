"""A model becomes folders that others can load, each verified by loading it as they would.

It does not know how the model was trained. It hands out `exporting.export`, `exporting.write_verified`,
`card.write_card` and the `formats.Format` protocol.
"""

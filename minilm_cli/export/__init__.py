"""A checkpoint becomes a folder that others can load, verified by loading it back as they would.

It does not know how the checkpoint was trained. It hands out `exporting.export`,
`exporting.write_verified` and the `formats.Format` protocol.
"""

"""What a user may set: the name, type, default and meaning of every setting, and how files and flags become settings.

It does not know what the settings do. It hands out the models (`distill.DistillSettings`, `tokenize.TokenizeSettings`,
`export.ExportSettings`) and the functions that build them with messages a user can act on (`load`). No torch.
"""

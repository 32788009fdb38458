"""Teacher and student: loading, configuration, starting weights, and the tap that stops at one layer.

It does not know about data, losses or optimisers. It hands out loaders and checks for both sides, what is known of each
model family (`families`), and taps (`tap`). `hub` alone needs no torch.
"""

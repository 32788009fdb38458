"""The token store: sequences of token ids on disk, memory-mapped, and several stores mixed into one.

It does not know where tokens come from, nor how they are shuffled into batches. It hands out `store.TokenStore`, its
writer, `mixture.Mixture`, and in `id_lists` files of token-id lists. numpy only.
"""

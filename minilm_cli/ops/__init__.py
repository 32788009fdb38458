"""Tensors in, tensors out: the relation loss, attention within packed sequences, dropout, sparse embeddings.

It does not know about models, batches or settings. It hands out `relation_loss.relation_loss`, the attention functions
and the modules that replace torch's.
"""

"""From text to tokens: open, decompress, split into lines, tokenise in worker processes, cut and pack.

It does not know about models or training. It hands out `tokenize.tokenize`. No torch.
"""

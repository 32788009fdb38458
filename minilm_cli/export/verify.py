"""Compares an export, loaded back as its users do, with the checkpoint that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from minilm_cli.base.errors import RunError
from minilm_cli.export.formats import Format, Source
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import loading, tokenizer_info


def verify(form: Format, source: Source, folder: Path) -> float:
    """Compare hidden states of single sequences and of a padded batch, and the tokenizers.

    Returns the largest difference, as a share of the largest hidden state; raises `RunError` if that is more than
    rounding, or the tokenizer is not the run's.
    """
    encode = form.load(folder, source.dtype)
    with loading("export", str(folder)):
        ours, theirs = (tokenizer_info(AutoTokenizer.from_pretrained(path)) for path in (source.run.tokenizer, folder))
    if ours != theirs:
        raise RunError("the exported tokenizer is not that of the run", where=str(folder))
    model, difference = source.student(), 0.0
    sequences = _probe(model)
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=_pad_id(model))
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    with torch.no_grad():
        together = encode(padded, mask)
        for row, ids in enumerate(sequences):
            expected = model(input_ids=ids[None]).last_hidden_state[0]
            for found in (encode(ids[None], None)[0], together[row, : len(ids)]):
                share = (found.float() - expected).abs().max() / expected.abs().max()
                # A value that is not a number counts as infinitely far: `max` would ignore it.
                difference = max(difference, share.nan_to_num(torch.inf).item())
    tolerance = form.tolerance[source.dtype]
    if difference > tolerance:
        raise RunError(
            f"the exported model does not compute what the checkpoint computes: its hidden states differ by"
            f" {difference:.2g}, more than the {tolerance:g} of rounding",
            where=str(folder),
        )
    return difference


def _probe(model: PreTrainedModel) -> list[Tensor]:
    """Sequences of token ids of several lengths, the longest as long as the model takes (at most 128)."""
    generator = torch.Generator().manual_seed(0)
    longest = min(128, family_of(model.config).longest_input(model) or 128)
    ids = [torch.randint(model.config.vocab_size, (length,), generator=generator) for length in (longest, 17, 3, 1)]
    # Some families find their positions by the padding id: it must not occur among real tokens.
    return [sequence.masked_fill(sequence == _pad_id(model), (_pad_id(model) + 1) % 2) for sequence in ids]


def _pad_id(model: PreTrainedModel) -> int:
    return model.config.pad_token_id or 0

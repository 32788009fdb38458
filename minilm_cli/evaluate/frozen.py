"""Scores of a model whose weights stay as they are, by its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minilm_cli.evaluate.candidate import Embed
from minilm_cli.evaluate.embedding import Array, Encode, encode_sorted
from minilm_cli.evaluate.probe import probe
from minilm_cli.evaluate.retrieval import retrieval
from minilm_cli.evaluate.task import LabelledTask, RetrievalTask, Task
from minilm_cli.evaluate.zero_shot import similarity
from minilm_cli.models.sentence_head import SentenceHead


def needs_probe(task: Task) -> bool:
    """Whether embeddings alone give no score, so that a probe is trained on them."""
    return isinstance(task, LabelledTask) and task.kind != "similarity"


def score_frozen(
    task: Task,
    embed: Embed,
    head: SentenceHead,
    longest: int | None,
    *,
    probes: bool,
    done: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The metrics of a task by embeddings, each made after the prompt that the head has for it.

    longest: tokens that texts are cut to. probes: whether to train a probe on a labelled task. done: is told, after
    each batch, how many texts it was.
    """

    def encoder(prompt: str | None) -> Encode:
        before = head.prompts.get(prompt or "", "")

        def compute(texts: Sequence[str]) -> Array:
            return embed([f"{before}{text}" for text in texts], longest)

        return lambda texts: encode_sorted(compute, texts, done=done)

    if isinstance(task, RetrievalTask):
        return retrieval(task, encoder("query"), encoder("document"))
    assert isinstance(task, LabelledTask)
    return (probe if probes else similarity)(task, encoder(head.default_prompt))

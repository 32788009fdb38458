"""`minilm tokenize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minilm_cli.cli.options import Json, Typed, options_of
from minilm_cli.cli.result import open_console, print_result
from minilm_cli.settings.tokenize import TokenizeSettings

if TYPE_CHECKING:
    from minilm_cli.corpus.tokenize import TokenizeReport


@options_of(TokenizeSettings)
def tokenize(typed: Typed, as_json: Json = False) -> None:
    """Tokenise text into a token store."""
    from minilm_cli.settings.validation import validate

    settings = validate(TokenizeSettings, typed)
    console = open_console()
    if settings.teacher is not None:
        from minilm_cli.models.teacher import check_teacher

        check_teacher(
            settings.teacher,
            max_length=settings.max_length,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    from minilm_cli.corpus import tokenize as corpus

    report = corpus.tokenize(settings, console.progress)
    facts = _facts(report, "sentences" if settings.split_sentences else "lines")
    console.table(f"Tokenised into {report.path}", [(name, f"{value:,}") for name, value in facts.items()])
    print_result(report.path, facts, as_json)


def _facts(report: TokenizeReport, samples: str) -> dict[str, int]:
    counts = report.counts
    return {
        "lines": report.lines,
        "blank lines skipped": counts.blank,
        **({"sentences": counts.units - counts.blank} if samples == "sentences" else {}),
        f"{samples} split": counts.split,
        f"{samples} truncated": counts.truncated,
        f"{samples} dropped": counts.dropped,
        **({"characters replaced": counts.replaced} if counts.replaced else {}),
        "sequences": report.sequences,
        "tokens": report.tokens,
        "median length": report.percentile(0.5),
        "90th percentile": report.percentile(0.9),
        "99th percentile": report.percentile(0.99),
        "longest": report.percentile(1.0),
        "tokens per second": round(report.tokens_per_second),
    }

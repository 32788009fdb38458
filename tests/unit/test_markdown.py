from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from minilm_cli.export.markdown import block, code, plain, table

TEXTS = st.text(
    st.sampled_from("ab |`*_[]()<>~\\&#$!-.:\n\t\"'") | st.characters(codec="utf-8", exclude_categories=["Cc"])
)


def shown(markdown: str) -> list[str]:
    """The text of each paragraph and cell, as a reader sees it; other elements are an error."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        assert token.type in SIMPLE, token
        if token.type == "inline":
            assert all(child.type in ("text", "code_inline", "text_special") for child in token.children or ()), token
            found.append("".join(child.content for child in token.children or ()))
    return found


SIMPLE = {
    "inline",
    *(f"{name}_{end}" for name in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
}


@given(TEXTS, TEXTS)
def test_cells_show_any_text_as_it_is(left: str, right: str) -> None:
    cells = shown(table([(plain(left), plain(right))], ("x", "y")))
    assert cells == ["x", "y", *(" ".join(text.split()) for text in (left, right))]


@given(TEXTS.filter(lambda text: bool(text.strip())))
def test_code_shows_any_text_as_it_is(text: str) -> None:
    _, cell = shown(table([(code(text),)], ("x",)))
    assert cell.strip() == " ".join(text.splitlines()).strip()


@pytest.mark.parametrize("text", ["a", "```\na", "~~~", "````x```"])
def test_blocks_end_where_their_text_ends(text: str) -> None:
    [token] = MarkdownIt().parse(block("yaml", text))
    assert (token.type, token.info, token.content) == ("fence", "yaml", f"{text}\n")


def test_names_stay_readable() -> None:
    assert plain("sentence-transformers/all_MiniLM-L6-v2 (1.5 GB)") == "sentence-transformers/all_MiniLM-L6-v2 (1.5 GB)"
    assert not re.search("[\n|]", plain("a\nb"))

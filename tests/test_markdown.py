"""Markdown: whatever a text says, a reader sees that text, and nothing else on the page changes."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_lora_ext.cards.markdown import (
    cell,
    code,
    code_cell,
    fence,
    flat,
    hub_link,
    inline,
    number,
    paragraphs,
    prose,
    text,
)

PAGE = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# Pieces that mean something in Markdown, HTML, on the Hub or to YAML, in every order.
PIECES = st.lists(
    st.sampled_from(
        ["#", "# ", "-", "- ", "---", "+ ", "1. ", "1)", "2024", ">", "=", "===", "|", "|---|", ":-:", "`", "```",
         "~~~", "\\", "\\(", "$$", "$", "*", "**", "_", "__", "[", "](x)", "![", "<", "<b>", "</details>", "<!--",
         "-->", "&", "&lt;", "&#35;", "http://x.y", "\n", "\n\n", "\r\n", "\t", "    ", " ", "\0", "\x1b", "\u2028",
         "\u202e", "a", "word", "é", "语"]
    ),
    max_size=12,
).map("".join)  # fmt: skip
ANYTHING = PIECES | st.text(max_size=20)


def shape(markdown: str) -> list[str]:
    return [token.type for token in PAGE.parse(markdown)]


def inlines(markdown: str) -> list[tuple[str, str]]:
    """The kind and content of everything inside the lines."""
    return [(child.type, child.content) for token in PAGE.parse(markdown) for child in token.children or ()]


def shown(markdown: str) -> str:
    """What a reader reads."""
    return "".join(content for _, content in inlines(markdown))


@given(ANYTHING)
@example("a\\")
@example("1986\\. A year")
@example("snake_case and _this_")
@example("\\(x\\) $$y$$")
def test_text_is_one_paragraph_that_reads_as_it_was(value):
    seen = text(value)
    expected = flat(value)
    assert shape(seen) == (["paragraph_open", "inline", "paragraph_close"] if expected else [])
    assert shown(seen) == expected
    assert {kind for kind, _ in inlines(seen)} <= {"text", "text_special"}
    assert "$" not in seen
    assert "\\(" not in seen


@given(ANYTHING)
def test_text_in_a_heading_stays_one_heading(value):
    seen = f"# x{inline(value)}"
    assert shape(seen) == ["heading_open", "inline", "heading_close"]
    assert shown(seen) == f"x{flat(value)}".strip()


@given(st.lists(ANYTHING, min_size=2, max_size=2), st.sampled_from([cell, code_cell]))
def test_a_table_keeps_its_cells_whatever_is_in_them(values, filled):
    first, second = values
    table = f"| a | b |\n|---|---|\n| {filled(first)} | {filled(second)} |\n"
    tokens = PAGE.parse(table)
    assert [t.type for t in tokens].count("td_open") == 2
    assert [t.type for t in tokens][-1] == "table_close"
    seen = ["".join(c.content for c in t.children) for t in tokens if t.type == "inline"][2:]
    assert seen == [flat(first), flat(second)]


@given(ANYTHING)
def test_code_cannot_be_closed_from_inside(value):
    seen = inlines(f"x {code(value)} y")
    assert seen == (
        [("text", "x "), ("code_inline", flat(value)), ("text", " y")] if flat(value) else [("text", "x  y")]
    )


@given(ANYTHING)
def test_a_fence_cannot_be_closed_from_inside(value):
    tokens = PAGE.parse(f"{fence(value, 'yaml')}\n\nafter\n")
    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content.strip("\n") == re.sub(r"\r\n?", "\n", value).replace("\0", "\ufffd").rstrip().strip("\n")


@given(ANYTHING)
def test_paragraphs_open_nothing_but_paragraphs(value):
    assert set(shape(paragraphs(value))) <= {"paragraph_open", "inline", "paragraph_close"}


@given(ANYTHING, ANYTHING)
def test_in_prose_only_what_stands_in_backticks_is_code(before, name):
    kinds = {kind for kind, _ in inlines(prose(f"{before} `{name}` after"))}
    assert kinds <= {"text", "text_special", "code_inline"}
    assert set(shape(prose(before))) <= {"paragraph_open", "inline", "paragraph_close"}


@given(ANYTHING)
def test_a_link_leads_to_the_hub_alone(value):
    tokens = [child for token in PAGE.parse(f"see {hub_link(value)}") for child in token.children or ()]
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert len(links) == 1
    assert links[0].startswith("https://huggingface.co/")


@pytest.mark.parametrize(
    ("value", "written"),
    [("adamw_torch_fused", "adamw_torch_fused"), ("3.11.7", "3.11.7"), ("torch 2.13.0+cpu", "torch 2.13.0+cpu"),
     (True, "yes"), (12171, "12,171"), (1e-08, "1e-08"), (0.00012345678, "0.00012345678"), (["a", "b"], "a, b")],
)  # fmt: skip
def test_ordinary_values_are_written_as_people_write_them(value, written):
    assert cell(value) == written


def test_numbers_have_separators_or_four_digits():
    assert (number(1234567), number(3.14159265)) == ("1,234,567", "3.142")


def test_characters_that_turn_the_direction_of_text_are_left_out():
    assert flat("safe\u202etxt.exe\ufeff") == "safetxt.exe"

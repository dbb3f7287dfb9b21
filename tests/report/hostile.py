"""Names that try to be something else."""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</style></title></textarea><script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "' style='background:url(https://example.org/x)'",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "[red]x[/red]",
    "[link=https://example.org]x[/link]",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;https://example.org\x07link\x1b]8;;\x07",
    "\x9b31mred",
    "a\u202eb\u2066c",
    "a\x00b\x08c\x7fd",
    "line\nbreak\r\nand\ttab",
    "| pipe | pipe | `code` **bold** [a](https://example.org) ![b](https://example.org/x.png)",
    "]]> <!-- --> &amp; &lt;",
    "\ufffe\uffff",
    "$\\frac{1}{0}$ %s {0}",
    "\u65e5\u672c\u8a9e \u0641\u0627\u0631\u0633\u06cc",
    "",
]

names = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))

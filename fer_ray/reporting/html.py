"""What the pages for people have in common: one HTML file with everything in it; it fetches nothing, and no stranger's words run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from fer_ray.text import printable

_STYLE = """
:root { --ink: #1f2933; --muted: #5f6b78; --line: #dde2e8; --soft: #f5f7f9; --blue: #2b6cb0; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: white; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 23px; margin: 56px 0 4px; padding-top: 20px; border-top: 2px solid var(--ink); overflow-wrap: anywhere; }
h3 { font-size: 17px; margin: 36px 0 4px; }
p, ul { margin: 4px 0 12px; max-width: 780px; }
.muted, figcaption, .facts { color: var(--muted); font-size: 14px; }
.facts { overflow-wrap: anywhere; }
.note { background: var(--soft); border-left: 4px solid var(--blue); padding: 12px 16px; margin: 20px 0; max-width: none; font-size: 15px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; margin: 18px 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; }
.card b { display: block; font-size: 26px; line-height: 1.25; font-variant-numeric: tabular-nums; font-weight: 600; }
.card span { display: block; color: var(--muted); font-size: 12.5px; line-height: 1.4; }
.card .name { color: var(--ink); font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 12px 0; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { font-weight: 600; color: var(--muted); font-size: 13px; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { overflow-wrap: anywhere; }
td.best { font-weight: 700; }
td small { display: block; color: var(--muted); }
figure { margin: 8px 0; }
img { max-width: 100%; height: auto; display: block; }
pre { background: var(--soft); padding: 12px 16px; font-size: 13.5px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--blue); font-size: 14px; }
footer { margin-top: 64px; border-top: 1px solid var(--line); padding-top: 12px; }
@media print {
  body { font-size: 11pt; } main { max-width: none; padding: 0; } h2 { break-before: page; }
  h3, figure, .cards, pre, tr { break-inside: avoid; } h3, figcaption { break-after: avoid; } summary { display: none; }
}
"""


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """The whole page. `title` is plain text, `body` HTML; `style` is added to that of all pages.

    The browser runs `script` and nothing else: it is told the hash of these words.
    """
    allowed = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}\">\n"
        f"<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n{body}</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def data(name: str, content: Any) -> str:
    """Plain values for a script, in an element of the id `name`; no text in them can end the element or a line."""
    written = json.dumps(content, separators=(",", ":"))  # ASCII: U+2028 and U+2029 end lines of scripts and are escaped here
    for char in "<>&":
        written = written.replace(char, f"\\u{ord(char):04x}")
    return f'<script type="application/json" id="{name}">{written}</script>\n'


def text(value: Any) -> str:
    """A stranger's text as HTML shows it, with what would not show spelled out."""
    return html.escape(printable(str(value)))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table; its cells are HTML already. Columns hold numbers unless they are the first or among `text_columns`."""
    kinds = [' class="text"' if index in text_columns else "" for index in range(len(header))]
    head = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, header, strict=True))
    body = "".join("<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def figure(png: bytes, alt: str, caption: str) -> str:
    """A PNG inside the page. `alt` is plain text, `caption` HTML."""
    data = base64.b64encode(png).decode()
    return f'<figure><figcaption>{caption}</figcaption><img src="data:image/png;base64,{data}" alt="{text(alt)}"></figure>\n'

"""The pages for people: one HTML file each, made from templates; it loads nothing, and no words from outside run in it."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import Any, cast
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from fer_ray.reporting.responsible_use import RESPONSIBLE_USE
from fer_ray.text import NO_BREAK_SPACE, duration, percent, plural, sanitize

NOTHING = "\N{EN DASH}"  # where a table has no figure
_TEMPLATES = "fer_ray.reporting"


def render(
    package: str, template: str, styles: Sequence[str] = (), scripts: Sequence[str] = (), own_origin: bool = False, **values: Any
) -> str:
    """A whole page.

    Args:
        package: The package whose folder `templates` holds the page's files; those of all pages (`base.html.j2`, `ui.html.j2`,
            `base.css`, `base.js`) are found beside them.
        template: The page, which extends `base.html.j2`.
        styles: CSS files of the page; `base.css` always comes first.
        scripts: JavaScript files, `base.js` too where a table shall be sortable. The browser runs these and nothing else: the
            page's policy names the hash of each.
        own_origin: Whether the scripts may ask the server that the page came from; by default they ask nobody.
        values: What the template shows. `title` (plain text) and `links` (pairs of a name and an address) are for the frame.

    Returns:
        The page. Every value in it is text; characters that would not show are spelled out.
    """
    environment = _environment(package)
    programs = [_read(environment, name) for name in scripts]
    frame = {
        "styles": [_read(environment, name) for name in ("base.css", *styles)],
        "scripts": programs,
        "policy": _policy(programs) + ("; connect-src 'self'" if own_origin else ""),
        "contents": [],
        "links": [],
    }
    return environment.get_template(template).render({**frame, **values})


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    """A picture as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def link(address: str) -> str:
    """What a browser can open of an address: web pages and files of this machine; empty for everything else, such as `javascript:`."""
    if address.startswith("/") and sanitize(address) == address:
        return PurePath(address).as_uri()
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return address if parts.scheme in ("http", "https") and parts.hostname else ""


def shorten(words: str, length: int) -> str:
    """Words with their middle left out where they are longer."""
    return words if len(words) <= length else f"{words[: length // 2]}\N{HORIZONTAL ELLIPSIS}{words[-length // 2 + 1 :]}"


def share(part: float, total: float, digits: int = 1) -> str:
    """A part's share in percent; a dash where there is nothing to have a share of."""
    return percent(part / total, digits) if total else NOTHING


def points(difference: float) -> str:
    """A difference of shares in percentage points."""
    rounded = f"{100 * difference:+.1f}"
    return "0.0" if float(rounded) == 0 else rounded.replace("-", "\N{MINUS SIGN}")


def utc(moment: datetime.datetime) -> str:
    """A moment to the second."""
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


@cache
def _environment(package: str) -> jinja2.Environment:
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, _TEMPLATES)])
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_spell_out,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # ASCII, so that U+2028 does not end a line of a script
    environment.filters |= {
        "counted": plural,
        "data_uri": data_uri,
        "duration": duration,
        "link": link,
        "percent": percent,
        "points": points,
        "share": share,
        "shorten": shorten,
        "thousands": "{:,}".format,
        "utc": utc,
    }
    environment.globals |= {"NOTHING": NOTHING, "RESPONSIBLE_USE": " ".join(RESPONSIBLE_USE)}
    return environment


def _spell_out(value: Any) -> Any:
    """Names come from strangers: what would not show, or would turn the text around, is spelled out. Our own no-break spaces stay."""
    if type(value) is not str or value.isprintable():
        return value
    return NO_BREAK_SPACE.join(sanitize(part) for part in value.split(NO_BREAK_SPACE))


def _read(environment: jinja2.Environment, name: str) -> Markup:
    loader = cast(jinja2.BaseLoader, environment.loader)
    return Markup(loader.get_source(environment, name)[0])  # noqa: S704 - a file of ours


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    allowed = f"; script-src {hashes}" if hashes else ""
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'{allowed}"

"""The frame of all pages: what a stranger's words cannot do in one, and what a browser is allowed to run."""

import base64
import hashlib
import json
import re
from pathlib import Path

import jinja2
import pytest
from pages import Page

from fer_ray.reporting.html import link, render

HOSTILE = "</script><script>window.hacked=1</script>\u202e\u2028'\" onerror=x"
TEMPLATE = """{% extends "base.html.j2" %}
{% import "ui.html.j2" as ui with context %}
{% block body %}
{{ ui.heading("first", "First") }}{{ ui.heading("second", words) }}
{{ ui.cards([{"name": words, "value": 0.5 | percent, "notes": [words]}]) }}
{{ ui.table(["name", words], [[words, 1]], sortable=true) }}
<figure><img src="{{ words.encode() | data_uri }}" alt="{{ words }}"><figcaption>{{ words }}</figcaption></figure>
{{ ui.lines(words ~ "\\n" ~ words) }}
{{ ui.values("data", [words]) }}
{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    templates = tmp_path / "page_of_a_test" / "templates"
    templates.mkdir(parents=True)
    (templates.parent / "__init__.py").touch()
    (templates / "page.html.j2").write_text(TEMPLATE)
    (templates / "misspelt.html.j2").write_text('{% extends "base.html.j2" %}{% block body %}{{ wrods }}{% endblock %}')
    monkeypatch.syspath_prepend(str(tmp_path))
    return "page_of_a_test"


def test_words_of_strangers_stay_words_wherever_a_page_shows_them(package: str) -> None:
    content = render(package, "page.html.j2", scripts=["base.js"], title=HOSTILE, words=HOSTILE, links=[(HOSTILE, "#top")])
    page = Page(content)
    assert page.text.count("</script><script>window.hacked=1</script>\\u202e\\u2028'\" onerror=x") == 12
    assert "50\N{NO-BREAK SPACE}%" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == ["application/json", None]
    assert not set("\u202e\u2028") & set(content)
    element = re.search(r'<script type="application/json" id="data">(.*)</script>', content)
    assert element
    assert json.loads(element[1]) == [HOSTILE]
    assert not set(element[1]) & set("<>&")


def test_a_browser_is_told_to_load_nothing_and_to_run_the_scripts_of_the_page_alone(package: str) -> None:
    content = render(package, "page.html.j2", scripts=["base.js"], title="a", words="b")
    script = content.split("<script>")[1].split("</script>")[0]
    policy = next(str(attributes["content"]) for _, attributes in Page(content).tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:;")
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert "script-src" not in render(package, "page.html.j2", title="a", words="b")
    with pytest.raises(jinja2.UndefinedError):
        render(package, "misspelt.html.j2", title="a")


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "s3://bucket/key", "https:///x", "http://[x", "relative.jpg", "/a\n"]
)
def test_only_what_a_browser_can_open_without_harm_becomes_a_link(address: str) -> None:
    assert link(address) == ""
    assert link("https://host/a b.jpg") == "https://host/a b.jpg"
    assert link("/archive/a b#1.jpg") == "file:///archive/a%20b%231.jpg"

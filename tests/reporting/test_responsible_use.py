"""Whoever meets a label reads what it is not, in the same words everywhere."""

from pathlib import Path

import pytest

from fer_ray.reporting.responsible_use import RESPONSIBLE_USE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["README.md", "docs/tables.md", "docs/model_card.md"])
def test_a_reader_of_the_documents_is_told_what_labels_are_not(document: str) -> None:
    words = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert all(sentence in words for sentence in RESPONSIBLE_USE)

"""What people see of a run holds nothing that their terminal would obey."""

from fer_ray.text import sanitize


def test_names_from_strangers_are_shown_escaped() -> None:
    assert sanitize("a\x1b[31m\nb\u202e\udcff ü") == "a\\x1b[31m\\nb\\u202e\\udcff ü"

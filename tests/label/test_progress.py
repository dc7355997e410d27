"""What people see of a run holds nothing that their terminal would obey."""

from fer_ray.text import printable


def test_names_from_strangers_are_shown_escaped() -> None:
    assert printable("a\x1b[31m\nb\u202e\udcff ü") == "a\\x1b[31m\\nb\\u202e\\udcff ü"

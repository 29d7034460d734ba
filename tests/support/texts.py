"""Changing texts in tests."""


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `new` in the place of `old`.

    `old` must occur: a test whose change is lost would pass for nothing.
    """
    assert old in text, f"there is no {old!r} any more"
    return text.replace(old, new)

"""``otus convert``."""


def convert() -> None:
    """To be written."""

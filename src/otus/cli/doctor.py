"""``otus doctor``."""


def doctor() -> None:
    """To be written."""

"""Pages that are made from the code: written before Sphinx looks for sources, only where they changed."""

from pathlib import Path

from sphinx.application import Sphinx


def write_page(app: Sphinx, name: str, lines: list[str]) -> None:
    """Write the page ``name`` (rst); one that is the same stays untouched, so that it is not built again."""
    path, text = Path(app.srcdir, "generated", f"{name}.rst"), "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def heading(text: str, line: str = "=") -> list[str]:
    """Return the lines of a heading."""
    return [text, line * len(text), ""]

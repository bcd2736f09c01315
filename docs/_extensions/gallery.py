"""The images of the pages, made anew by the code that the site documents; those in ``docs/images`` are for other readers."""

import runpy
from pathlib import Path

from sphinx.application import Sphinx


def write_images(app: Sphinx, exception: Exception | None) -> None:
    """Run each ``*_images.py`` beside the pages; its images take the place of their copies in the site."""
    if exception is None and app.builder.format == "html":
        for script in sorted(Path(app.srcdir).glob("*_images.py")):
            runpy.run_path(str(script))["main"](Path(app.outdir, "_images"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("build-finished", write_images)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

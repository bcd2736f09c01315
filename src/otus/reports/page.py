"""A self-contained HTML page of sections, figures and tables: the form of every report."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otus._files import staged_file

_MAX_HEIGHT = 2000  # CSS pixels of a figure: tall narrow images are not enlarged beyond any screen
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --quiet: #666; --line: #ddd; --ground: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --quiet: #aaa; --line: #444; --ground: #16181b; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
p { max-width: 46rem; margin: .3rem 0 .8rem; } .quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; } img, video { display: block; max-width: 100%; border-radius: 4px; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
.rows { max-height: 24rem; overflow: auto; width: fit-content; max-width: 100%; padding-right: 1rem; }
</style></head><body>
<h1>{{ page.title }}</h1><p class="quiet">{{ page.subtitle }}</p>
{% for section in page.sections %}
<section><h2>{{ section.title }}</h2>{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.figures %}<div class="figures">{% for figure in section.figures %}
<figure style="width: {{ figure.width }}px">
{% if figure.source.endswith(".mp4") %}
<video controls preload="metadata" src="{{ figure.source }}" width="{{ figure.width }}"></video>
{% else %}
<img loading="lazy" src="{{ figure.source }}" width="{{ figure.width }}" alt="{{ figure.caption }}">
{% endif %}
<figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if section.rows %}<div class="rows"><table><thead><tr>
{% for name in section.rows[0] %}<th class="{{ kind(section.rows[0][name]) }}">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.rows %}<tr>{% for value in row.values() %}<td class="{{ kind(value) }}">{{ show(value) }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
</section>{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Figure:
    """An image or a video with its caption.

    Parameters
    ----------
    source
        Path relative to the page, or data URI; a path that ends in ``.mp4`` is a video.
    caption
        Text below it.
    width
        Width on the page, in CSS pixels.
    """

    source: str
    caption: str
    width: int

    @classmethod
    def of(cls, image: UInt8[np.ndarray, "h w 3"], caption: str, *, width: int | None = None) -> "Figure":
        """Return a figure of a uint8 (H, W, 3) RGB image, embedded as JPEG (default width: its own, in pixels)."""
        height, own_width = image.shape[:2]
        width = min(width or own_width, max(1, _MAX_HEIGHT * own_width // height))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return cls(f"data:image/jpeg;base64,{data}", caption, width)


@dataclass(frozen=True)
class Section:
    """A section of a page: title, text, figures side by side, and a table, whose rows all have the same keys."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    rows: Sequence[Mapping[str, object]] = ()


def numbered(sections: Iterable[Section]) -> Iterator[Section]:
    """Yield the sections with numbers before their titles, from the second on."""
    for number, section in enumerate(sections):
        yield replace(section, title=f"{number}. {section.title}") if number else section


@dataclass(frozen=True)
class Page:
    """A page: title, subtitle and sections."""

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the page as HTML, without references to the network."""
        return _environment().from_string(_TEMPLATE).render(page=self)

    def write(self, path: str | Path) -> None:
        """Write the page as UTF-8; the file is written completely or not at all."""
        with staged_file(path) as stage:
            stage.write_text(self.html(), encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(kind=_kind, show=_show)
    return environment


def _kind(value: object) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

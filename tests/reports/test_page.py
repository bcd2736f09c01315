"""A page carries all that it shows, and shows text as text."""

import base64
import io
import re

import numpy as np
from PIL import Image

from otus.reports.page import Figure, Page, Section


def test_images_are_carried_by_the_page():
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, 20:] = 200
    html = Page("Title", "below", [Section("One", figures=[Figure.of(image, "half & half", width=80)])]).html()
    assert 'width="80" alt="half &amp; half"' in html
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    with Image.open(io.BytesIO(base64.b64decode(data))) as carried:
        np.testing.assert_allclose(np.asarray(carried), image, atol=12)
    assert not re.search(r"https?://|<script|<link", html)


def test_a_figure_is_as_broad_as_its_image_unless_said():
    assert Figure.of(np.zeros((30, 40, 3), np.uint8), "").width == 40


def test_text_is_never_markup():
    html = Page("<b>", "<i>", [Section("<u>", "<s>", rows=[{"<q>": "<script>alert(1)</script>"}])]).html()
    for tag in ("<b>", "<i>", "<u>", "<s>", "<q>", "<script>"):
        assert tag not in html
    assert "&lt;script&gt;" in html


def test_tables_have_a_line_for_each_row():
    rows = [{"name": "cat", "score": 0.123456, "count": 3, "kept": True}, {"name": "dog", "score": 1.0, "count": 12000}]
    html = Page("", "", [Section("", rows=rows)]).html()
    assert re.findall(r'<th class="(\w*)">(\w+)</th>', html) == [
        ("", "name"),
        ("number", "score"),
        ("number", "count"),
        ("", "kept"),
    ]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["cat", "0.1235", "3", "True", "dog", "1", "12000"]


def test_written_whole(tmp_path):
    page = Page("Seiten", "größer", [Section("Eulen")])
    page.write(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page.html()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]

"""Every code block of the README and of the pages runs on a few made-up images, or says in the line above why it does not.

``<!-- not run: WHY -->`` keeps a block from running; ``<!-- run with: A as B -->`` puts B in the place of A, where A would
take minutes. The blocks of a page run one after another in one folder, as somebody would type them.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from otus.data.scenes.files import write_scenes
from otus.data.video import VideoWriter

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted(ROOT.glob("docs/**/*.md"))
        if "_build" not in page.parts and "generated" not in page.parts
    ),
]
_MARK = re.compile(r"<!-- (?P<kind>not run|run with): (?P<what>.*\S) -->")


@dataclass
class Block:
    """A fenced block of code, and what the line above it says of running it."""

    place: str
    language: str
    code: str
    kind: str = ""
    what: str = ""


def find_blocks(text: str, name: str) -> list[Block]:
    blocks, before, language, lines = [], "", "", text.splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if start is not None and line.strip() == "```":
            code = "\n".join(lines[start : number - 1])
            mark = _MARK.fullmatch(before)
            marked = (mark["kind"], mark["what"]) if mark else ("", "")
            blocks.append(Block(f"{name}:{start}", language, code, *marked))
            start, before = None, ""
        elif start is None and line.startswith("```"):
            start, language = number, line.removeprefix("```").strip()
        elif start is None and line.strip():
            before = line.strip()
    assert start is None, f"{name}: the block of line {start} does not end"
    return [block for block in blocks if not block.language.startswith("{")]  # those are Sphinx's own


def run_bash(block: Block, otus_command: Callable[..., str]) -> None:
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "otus", f"{block.place}: only otus is typed in blocks that run, got {line}"
        target = Path(words.pop()) if ">" in words and words.pop(-2) else None
        answer = otus_command(*words[1:])
        if target is not None:
            target.write_text(answer)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos`` with labels, ``street.jpg`` and a film, as the pages speak of them."""
    folder = tmp_path_factory.mktemp("material")
    write_scenes(folder / "photos", 8, size_hw=(96, 128))
    shutil.rmtree(folder / "photos" / "panoptic")
    shutil.copy(folder / "photos" / "images" / "000003.jpg", folder / "street.jpg")
    with VideoWriter(folder / "holiday.mp4", frame_rate=5) as film:
        for shade in (60, 120):
            film.add(np.full((96, 128, 3), shade, np.uint8))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_of_the_page_runs(page, material, tmp_path, monkeypatch, otus_command):
    blocks = [one for one in find_blocks(page.read_text(), page.name) if one.kind != "not run"]
    if not blocks:
        return
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTUS_CACHE", str(tmp_path / "cache"))
    for block in blocks:
        if block.kind == "run with":
            before, _, after = block.what.partition(" as ")
            assert before in block.code, f"{block.place}: there is no {before} to replace"
            block.code = block.code.replace(before, after)
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), {"__name__": "__main__"})
        else:
            assert block.language == "bash", f"{block.place}: expected bash or python, or why it does not run"
            run_bash(block, otus_command)


def test_a_block_that_fails_is_found(tmp_path, monkeypatch, otus_command):
    monkeypatch.chdir(tmp_path)
    text = "```bash\notus doctor nowhere\n```\n\n<!-- not run: why -->\n```python\n1 / 0\n```\n\n```{toctree}\na\n```\n"
    fails, marked = find_blocks(text, "page")
    assert (marked.kind, marked.what, marked.code) == ("not run", "why", "1 / 0")
    with pytest.raises(AssertionError, match="otus doctor nowhere ended with"):
        run_bash(fails, otus_command)

"""Recognise files of labelling tools that Otus cannot read, and the export to use instead."""

import re
from collections.abc import Iterator
from pathlib import Path

from otus.data.formats.paths import list_files, sample_files
from otus.data.formats.text_files import read_head

_HEAD_BYTES = 1 << 16
# Tool, file suffix, patterns that all occur in its files, and the export to use instead.
_TOOLS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("CreateML", ".json", (r'"image(?:filename)?"', r'"coordinates"'), "Pascal VOC or COCO"),
    ("VIA (VGG Image Annotator)", ".json", (r'"shape_attributes"',), "COCO (Annotation, Export Annotations)"),
    ("Supervisely", ".json", (r'"classTitle"',), "COCO or Pascal VOC"),
    ("Labelbox", ".json", (r'"data_row"',), "COCO"),
    ("Labelbox", ".ndjson", (r'"data_row"',), "COCO"),
    ("VoTT", ".json", (r'"asset"', r'"regions"'), "Pascal VOC"),
    ("Datumaro", ".json", (r'"items"', r'"categories"'), "COCO or Pascal VOC"),
    ("Label Studio (JSON-MIN)", ".json", (r'"original_width"',), "JSON, not JSON-MIN"),
    ("Roboflow (text of Keras)", ".txt", (r"(?m)^\S.*\.\w+ \d+,\d+,\d+,\d+,\d+",), "COCO, Pascal VOC or YOLO"),
    ("a table of boxes", ".csv", (r"(?i)xmin|x_min|bbox|x1",), "COCO, Pascal VOC or YOLO"),
    ("TensorFlow", ".tfrecord", ("",), "COCO or Pascal VOC"),
    ("Ultralytics", ".ndjson", (r'"type"', r'"task"'), "YOLO"),
    ("Hugging Face", ".parquet", ("",), "COCO"),
)


def find_unsupported(path: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the file, the tool, and the export to use instead, once per tool."""
    folders = [path, *(path / name for name in ("annotations", "labels", "train", "ann"))] if path.is_dir() else []
    reported: set[str] = set()
    for suffix in dict.fromkeys(suffix for _, suffix, _, _ in _TOOLS):
        samples = [sample_files(list_files(folder, f"*{suffix}")) for folder in folders] if folders else [[path]]
        for file in (file for files in samples for file in files if file.suffix == suffix):
            text = read_head(file, _HEAD_BYTES).decode(errors="replace")
            for tool, tool_suffix, patterns, export in _TOOLS:
                if (
                    suffix == tool_suffix
                    and tool not in reported
                    and all(re.search(pattern, text) for pattern in patterns)
                ):
                    reported.add(tool)
                    yield file, tool, export
                    break

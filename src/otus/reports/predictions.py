"""The folder of ``otus predict``: overlays, ``predictions.json`` and ``index.html``."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import quote

import msgspec
import numpy as np

from otus._files import staged_file
from otus.data.formats.coco_panoptic import ids_to_rgb
from otus.data.image_writing import write_image
from otus.data.sources import is_video
from otus.data.video import Video, VideoWriter
from otus.errors import DataError, UsageError, stop_at_first
from otus.inference.prediction import Prediction
from otus.parts.display import count_names, instance_records
from otus.reports.page import Figure, Page, Section
from otus.structures import Categories

_CLOSING = b"\n]\n"  # of predictions.json
_JPEG_SIDE = 65_500  # pixels; libjpeg's maximum
_OVERLAY_WIDTH = 560  # CSS pixels of an overlay on the page


class PredictionFolder:
    """Write overlays and ``predictions.json`` as predictions arrive, with one prediction in memory at a time.

    An overlay has the name of its image, with a number if an earlier one of the run has that name. The frames of a video are
    written as a video of the same name, and a further one whenever their size changes.

    ``predictions.json`` is a list of COCO results. ``image_id`` counts images and frames from 1 in order of arrival; each
    record also has the ``file_name``, ``frame`` and ``category`` with which it is read again, and the ``score_threshold``
    of its category, so that an evaluation can report it. Panoptic maps are written in COCO's format: a record for each
    image, and a PNG of segment ids in ``predictions/``. ``index.html`` shows the overlays and a table of all objects.

    It is used as a context manager. However the block ends, even by Ctrl-C or on a full disk, the files are valid and
    contain everything that was added before.

    Parameters
    ----------
    folder
        Output folder, created if it does not exist. Files of the same names are replaced; see :meth:`refuse_sources`.
    categories
        The model's categories.
    stride
        Step between predicted frames of a video; the frame rate of the overlay is divided by it.
    page
        Whether to write ``index.html``.
    score_thresholds
        Score threshold by category; see :meth:`~otus.inference.predictor.Predictor.category_thresholds`.
    report
        Called with the error of each overlay that cannot be written (default: raise the first).

    Attributes
    ----------
    written
        Paths of the overlays.
    smaller
        Names of overlays with lower resolution than their image, and the factor: images that were decoded at reduced
        resolution, or exceed the 65,500 pixels per side of a JPEG.
    """

    def __init__(
        self,
        folder: Path,
        *,
        categories: Categories,
        stride: int = 1,
        page: bool = False,
        score_thresholds: Mapping[str, float] = MappingProxyType({}),
        report: Callable[[DataError], None] = stop_at_first,
    ) -> None:
        self._score_thresholds = score_thresholds
        self.folder = folder
        self.categories = categories
        self.stride = stride
        self._page = page
        self._report = report
        self._figures: list[Figure] = []
        self._rows: list[dict[str, object]] = []
        self._frame_count = 0
        self.written: list[Path] = []
        self.smaller: list[str] = []
        self._used: Counter[str] = Counter()
        self._used_ids: Counter[str] = Counter()
        self._count = 0
        self._clip: tuple[str, tuple[int, ...]] | None = None  # name and shape of the frames of the video being written
        self._writer: VideoWriter | None = None
        self._video = ExitStack()
        self._stack = ExitStack()
        self._json: FileIO
        self._end = 0  # of the last record in it

    def __enter__(self) -> "PredictionFolder":
        return self

    def refuse_sources(self, files: Iterable[Path]) -> None:
        """Raise an error if writing to the folder would replace files beside the source images.

        Parameters
        ----------
        files
            Images and videos to predict on.

        Raises
        ------
        UsageError
            If one of them is in the folder and a file there, possibly an image, would be replaced.
        """
        files = list(files)
        folder = os.path.realpath(self.folder)
        if folder not in {os.path.realpath(parent) for parent in {file.parent for file in files}}:
            return
        used: Counter[str] = Counter()
        names = [_free_name(file, ".mp4" if is_video(file) else ".jpg", used) for file in files]
        names += ["index.html"] if self._page else []
        replaced = [name for name in names if os.path.lexists(self.folder / name)]
        if replaced:
            listed = f"{replaced[0]} and {len(replaced) - 1} more" if len(replaced) > 1 else replaced[0]
            raise UsageError(
                f"--out: {self.folder} holds images to predict on, and files there would be replaced: {listed}; "
                "name another folder"
            )

    def _open(self) -> None:
        """Create ``predictions.json``, at the first prediction: a run without any keeps the files of an earlier one."""
        try:
            stage = self._stack.enter_context(staged_file(self.folder / "predictions.json"))
            self._json = self._stack.enter_context(FileIO(stage, "w"))
            self._append(b"[")
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise

    def _append(self, text: bytes) -> None:
        """Write before the closing bracket; after each call the file is valid JSON, even if the disk is full."""
        remaining = memoryview(text + _CLOSING)
        try:
            self._json.seek(self._end)
            while remaining:
                remaining = remaining[self._json.write(remaining) :]
        except BaseException as error:
            if self._end:
                self._json.truncate(self._end)
                self._json.seek(self._end)
                self._json.write(_CLOSING)
            if not isinstance(error, OSError):
                raise
            problem = f"cannot be written any further, {error.strerror}; it ends before image {self._count}"
            file = self.folder / "predictions.json"
            raise DataError(problem, file=file, remedy="make room, then predict the rest", kind="unwritable") from None
        self._end += len(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()  # first, since the rest may fail: predictions.json is always complete
        finally:
            self._end_video()
        if self._page and self._count:
            self._write_page()

    def add(self, prediction: Prediction) -> Prediction:
        """Append the records of a prediction and write its overlay; return it with the file of its segment ids, if any."""
        if self._count == 0:
            self._open()
        self._count += 1
        source = {"file_name": _as_utf8(prediction.name)}
        if prediction.frame is not None:
            source |= {"frame": prediction.frame}  # type: ignore[dict-item]
        if prediction.panoptic is None:
            records = [record | source for record in prediction.to_coco(image_id=self._count)]
        else:
            prediction = self._with_ids_file(prediction)
            records = [_panoptic_record(prediction, source)]
        for record in records:
            if record.get("category") in self._score_thresholds:
                record["score_threshold"] = self._score_thresholds[record["category"]]
        if records:
            first = b"\n" if self._end == 1 else b",\n"
            self._append(first + b",\n".join(map(msgspec.json.encode, records)))
        try:
            self._draw(prediction)
        except DataError as error:
            self._report(error)
        return prediction

    def _with_ids_file(self, prediction: Prediction) -> Prediction:
        """Write the segment ids as a PNG in COCO's panoptic format, to the folder ``predictions``."""
        assert prediction.panoptic is not None
        frame = "" if prediction.frame is None else f"-{prediction.frame:06d}"
        name = Path(prediction.name).with_suffix("")
        file = self.folder / "predictions" / _free_name(Path(f"{name}{frame}.png"), ".png", self._used_ids)
        write_image(file, ids_to_rgb(prediction.panoptic.ids))
        return replace(prediction, ids_file=file)

    def _draw(self, prediction: Prediction) -> None:
        if prediction.frame is not None:
            self._add_frame(prediction)
            return
        self._end_video()
        target = self._target(prediction.name, suffix=".jpg")
        image = self._overlay(prediction)
        write_image(target, image)
        self.written.append(target)
        if self._page:
            self._show(prediction.name, target, width=image.shape[1], objects=self._list(prediction))

    def _overlay(self, prediction: Prediction) -> np.ndarray:
        """Draw the result on the image, downscaled if it exceeds the size of a JPEG."""
        longer_side = max(prediction.image.shape)
        factor = -(-longer_side // _JPEG_SIDE)
        total_factor = round(max(prediction.size_hw) / -(-longer_side // factor))
        if total_factor > 1:
            self.smaller.append(f"{Path(prediction.name).name}, by {total_factor}")
        return prediction.overlay(factor=factor)

    def _show(self, name: str, target: Path, *, width: int, objects: str = "") -> None:
        """Add an overlay, ``width`` pixels wide, to the figures of the page; the page links to the file."""
        caption = _as_utf8(Path(name).name) + (f": {objects}" if objects else "")
        self._figures.append(Figure(quote(os.fsencode(target.name)), caption, min(_OVERLAY_WIDTH, width)))

    def _list(self, prediction: Prediction) -> str:
        """Add the objects to the rows of the page's table, and return their counts by category as text."""
        objects = replace(
            prediction.task.display.objects(prediction.result, prediction.size_hw), masks=None, keypoints=None
        )
        records = list(instance_records(objects, self.categories))
        name = _as_utf8(Path(prediction.name).name)
        for record in records:
            x, y, w, h = (round(value) for value in record.pop("bbox"))
            box = {"x": x, "y": y, "width": w, "height": h}
            frame = "" if prediction.frame is None else prediction.frame
            self._rows.append({"image": name, "frame": frame, **record, **box})
        return count_names([record["category"] for record in records])

    def _write_page(self) -> None:
        frames = self._frame_count

        def count(number: int, noun: str) -> str:
            return f"{number} {noun}{'' if number == 1 else 's'}"

        where = count(self._count - frames, "image") + (f" and {count(frames, 'frame')} of videos" if frames else "")
        sections = [Section("Images and videos" if frames else "Images", figures=self._figures)]
        rows = self._rows if frames else [{k: v for k, v in row.items() if k != "frame"} for row in self._rows]
        if rows:
            sections.append(Section("Objects", "Boxes in pixels of the image.", rows=rows))
        page = Page("Predictions", f"{count(len(self._rows), 'object')} on {where}", sections)
        page.write(self.folder / "index.html")

    def _add_frame(self, prediction: Prediction) -> None:
        clip = (prediction.name, prediction.image.shape)
        if clip != self._clip or prediction.frame == 0:
            self._end_video()
            self._clip = clip  # set first, so that an unreadable video is reported once, not for every frame
            rate = Video(prediction.name).frame_rate / self.stride
            target = self._target(prediction.name, suffix=".mp4")
            self._writer = self._video.enter_context(VideoWriter(target, frame_rate=rate))
            if self._page:
                self._show(prediction.name, target, width=prediction.image.shape[1])
        self._frame_count += 1
        if self._page:
            self._list(prediction)
        if self._writer is not None:
            try:
                self._writer.add(prediction.plot())
            except BaseException:
                self._writer = None
                self._video.__exit__(*sys.exc_info())
                raise

    def _end_video(self) -> None:
        writer, self._writer, self._clip = self._writer, None, None
        if writer is None:
            return
        try:
            self._video.close()
        except DataError as error:
            self._report(error)
        else:
            self.written.append(writer.path)

    def _target(self, name: str, *, suffix: str) -> Path:
        return self.folder / _free_name(Path(name), suffix, self._used)


def _panoptic_record(prediction: Prediction, source: dict[str, str]) -> dict[str, object]:
    """Return the record of an image in COCO's panoptic format, with the image's name as its id."""
    assert prediction.ids_file is not None
    segments = prediction.to_dict()["panoptic"]["segments_info"]
    info = [{name: value for name, value in segment.items() if name != "segmentation"} for segment in segments]
    source = {"image_id" if name == "file_name" else name: value for name, value in source.items()}
    return {**source, "file_name": prediction.ids_file.name, "segments_info": info}


def _free_name(file: Path, suffix: str, used: Counter[str]) -> str:
    """Return an unused name for the overlay of a file; ``used`` counts case-folded names, for such file systems."""
    first = name = file.stem + suffix
    while used[name.casefold()]:
        used[first.casefold()] += 1
        name = f"{file.stem}-{used[first.casefold()]}{suffix}"
    used[name.casefold()] += 1
    return name


def _as_utf8(name: str) -> str:
    """Return a file name as text: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")

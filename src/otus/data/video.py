"""Read and write video frame by frame with FFmpeg (PyAV), keeping only a few frames in memory."""

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import av
import numpy as np
from jaxtyping import Int, UInt8

from otus._files import staged_file
from otus.data.git_lfs import LFS_PROBLEM, LFS_REMEDY, is_lfs_pointer
from otus.errors import ImageError, ShapeError, UsageError

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"))
_MAX_LISTED = 3  # damaged positions in an error message


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame: its 0-based index, its time in seconds from the start, and its image, uint8 (H, W, 3) RGB, upright."""

    index: int
    time_s: float
    image: UInt8[np.ndarray, "h w 3"]


class Video:
    """A video file; each iteration yields its frames from the start.

    Parameters
    ----------
    path
        The video file.

    Attributes
    ----------
    size_hw
        Height and width of the first frame, upright; later frames may differ if the stream changes its resolution.
    frame_rate
        Average number of frames per second.
    frame_count
        Number of frames stated in the file's header, which may be wrong; None if it states none.

    Raises
    ------
    ImageError
        If the file is missing or not a video, or its first frame cannot be decoded.

    Examples
    --------
    >>> for frame in Video("street.mp4").frames(stride=10):  # doctest: +SKIP
    ...     detect(frame.image)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if is_lfs_pointer(path):
            raise ImageError(LFS_PROBLEM, file=path, remedy=LFS_REMEDY)
        with self._open() as (_, stream):
            self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.frame_count: int | None = stream.frames or None
        first = next(self.frames(), None)
        if first is None:
            raise self._broken("has no frame that can be decoded", where="frame 0")
        self.size_hw = (first.image.shape[0], first.image.shape[1])

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def frames(self, *, stride: int = 1) -> Iterator[Frame]:
        """Yield frames 0, ``stride``, 2 ``stride`` …, decoded lazily.

        Times count from the first timestamp of the stream, which in MPEG-TS is not 0. Where timestamps jump back,
        because files were concatenated, times continue from the previous frame. Where they jump forward in MPEG-TS, the
        packets' continuity counters distinguish lost frames from a pause in the recording; these counters are modulo
        16, so the loss of a multiple of 16 packets looks like a pause.

        Parameters
        ----------
        stride
            Yield every ``stride``-th frame (default: 1, all frames).

        Raises
        ------
        ImageError
            If the file is truncated or damaged. Raised after the last frame, when all frames that can be decoded have
            been yielded, also those after the damage; the message gives its position.
        """
        if stride < 1:
            raise UsageError(f"stride: expected 1 or more, got {stride}")
        index = 0
        with self._open() as (container, stream):
            start_s = None if stream.start_time is None else float(stream.start_time * stream.time_base)
            matrix: Int[np.ndarray, "9"] | None = None
            for frame in self._decode(container, stream):
                if index == 0:
                    # Only once: PyAV's side data refer to their frame in a cycle, so every frame would stay in memory.
                    matrix = _display_matrix(frame)
                start_s = frame.time if start_s is None else start_s
                if index % stride == 0:
                    time_s = float(index / self.frame_rate) if frame.time is None else frame.time - (start_s or 0)
                    yield Frame(index, time_s, _upright(frame, matrix))
                index += 1

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        frames = packets = 0
        damage = _Damage(float((stream.start_time or 0) * stream.time_base))
        break_message: str | None = None
        for packet in self._packets(container, stream, damage):
            if packet is None:
                break_message = "the file is cut off or damaged here"
                break
            packets += packet.size > 0
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                damage.add(packet, f"cannot be decoded: {error.strerror}")
                continue
            frames += len(decoded)
            for frame in decoded:
                if frame.is_corrupt:
                    damage.add(frame, "the frame is incomplete")
                yield frame
        # Other containers count wrongly, but these list every frame in their index.
        if break_message is None and "mp4" in container.format.name and packets < stream.frames:
            break_message = f"the file ends here, its index lists {stream.frames} frames"
        if break_message is None and (_header_file_size(self.path) or 0) > container.size:
            break_message = "the file is cut off after this frame: its header states a larger size"
        if break_message is not None:
            try:
                buffered = stream.codec_context.decode(None)
            except (av.FFmpegError, EOFError):
                buffered = []
            yield from buffered
            damage.add_at(f"frame {frames + len(buffered)}", break_message)
        if damage.count:
            raise self._broken(damage.problem(), where=damage.positions[0][0])

    def _packets(self, container: Any, stream: Any, damage: "_Damage") -> Iterator[Any]:
        """Yield the packets that are intact or followed by further packets, then None if the stream breaks off.

        Where files were concatenated, which MPEG-TS allows, timestamps restart; they are shifted to continue.
        """
        step = round(1 / (self.frame_rate * stream.time_base))
        last_dts, shift = None, 0
        gaps = _Gaps(self.path, step) if _is_transport_stream(self.path) else None
        for packet, *following in _with_following(_until_broken(container.demux(stream)), 2):
            is_last = not any(getattr(after, "size", 0) for after in following)
            if isinstance(packet, Exception) or (packet.is_corrupt and is_last):
                yield None
                return
            # Where files were joined, counters restart as after a loss, and FFmpeg marks a packet before as corrupt.
            times = [after.dts for after in following if getattr(after, "dts", None) is not None]
            is_blamed = packet.is_corrupt and (packet.dts is None or packet.dts <= min(times, default=packet.dts))
            if packet.dts is not None:
                if last_dts is not None and packet.dts < last_dts:
                    shift += last_dts + step - packet.dts
                last_dts = packet.dts
                packet.dts += shift
                if packet.pts is not None:
                    packet.pts += shift
                if gaps is not None and (count := gaps.frames_before(packet)):
                    damage.add(packet, f"{count} frame{'s are' if count > 1 else ' is'} missing before it")
            if is_blamed:
                damage.add(packet, "packets are missing")
            yield packet

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        if not os.path.isfile(self.path):
            raise ImageError(
                "expected a video, got a folder" if os.path.isdir(self.path) else "there is no such video",
                file=self.path,
                remedy="check the path",
                kind="missing_image",
            )
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._broken(f"is not a video that can be read, or its index is cut off: {error}") from error
        with container:
            if not container.streams.video:
                raise self._broken("has no video stream, only audio or text")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise self._broken("uses a codec that FFmpeg does not know")
            stream.thread_type = "AUTO"
            yield container, stream

    def _broken(self, problem: str, *, where: str | None = None) -> ImageError:
        remedy = "restore the file, or use the frames that can be decoded" if where else "convert it to MP4"
        kind = "damaged_video" if where else "unreadable_video"
        return ImageError(problem, file=self.path, where=where, remedy=remedy, kind=kind)


class VideoWriter:
    """Write frames to a video: H.264 if FFmpeg was built with it, else MPEG-4; yuv420p, which every player supports.

    yuv420p subsamples colour by 2 in both directions and needs an even size: the last row or column of an odd size is
    duplicated. Use as a context manager: the file appears at ``path`` when the block ends without an error.

    Parameters
    ----------
    path
        The output file; its suffix chooses the container.
    frame_rate
        Frames per second; pass :attr:`Video.frame_rate` to keep that of a video.

    Examples
    --------
    >>> with VideoWriter("out.mp4", frame_rate=video.frame_rate) as writer:  # doctest: +SKIP
    ...     for frame in video:
    ...         writer.add(frame.image)
    """

    def __init__(self, path: str | Path, *, frame_rate: Fraction | float) -> None:
        self.path = Path(path)
        self.frame_rate = Fraction(frame_rate).limit_denominator(100_000)
        if self.frame_rate <= 0:
            raise UsageError(f"frame_rate: expected more than 0, got {frame_rate}")
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise UsageError(f"{path}: not the suffix of a video; name it .mp4")
        self.frame_count = 0
        self._shape: tuple[int, ...] = ()
        self._stack = ExitStack()

    def __enter__(self) -> "VideoWriter":
        stage = self._stack.enter_context(staged_file(self.path))
        self._container = self._stack.enter_context(av.open(str(stage), "w"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                self._stack.__exit__(kind, error, trace)
                return
            if self.frame_count == 0:
                raise UsageError(f"{self.path}: a video needs at least one frame")
            self._container.mux(self._stream.encode())

    def add(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append a frame, uint8 (H, W, 3) RGB, of the same size as the first."""
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"frame {self.frame_count}: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        if self._shape and image.shape != self._shape:
            raise ShapeError(
                f"frame {self.frame_count}: expected {self._shape} like the first frame, got {image.shape}"
            )
        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self._shape:
            self._shape = image.shape
            self._stream = self._start(even.shape[0], even.shape[1])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts = self.frame_count
        frame.time_base = 1 / self.frame_rate
        self._container.mux(self._stream.encode(frame))
        self.frame_count += 1

    def _start(self, height: int, width: int) -> Any:
        if "libx264" in av.codecs_available:
            stream = self._container.add_stream("libx264", rate=self.frame_rate, options={"crf": "18"})
        else:
            stream = self._container.add_stream("mpeg4", rate=self.frame_rate)
            stream.bit_rate = int(height * width * self.frame_rate * Fraction(1, 4))  # 1/4 bit per pixel: high quality
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        return stream


@dataclass
class _Damage:
    """The damage of a stream that starts at ``start_s`` seconds: the number of problems, and the first few of them."""

    start_s: float
    count: int = 0
    positions: list[tuple[str, str]] = field(default_factory=list)

    def add(self, item: Any, problem: str) -> None:
        """Record a problem of a packet or frame at its time."""
        stamp = item.dts if item.pts is None else item.pts
        self.add_at("a frame" if stamp is None else f"{float(stamp * item.time_base) - self.start_s:.2f} s", problem)

    def add_at(self, where: str, problem: str) -> None:
        """Record a problem at a position."""
        self.count += 1
        if len(self.positions) < _MAX_LISTED:
            self.positions.append((where, problem))

    def problem(self) -> str:
        """Return all problems as one message, without the position of the first, which the error states itself."""
        messages = [self.positions[0][1], *(f"{where}: {problem}" for where, problem in self.positions[1:])]
        more = self.count - len(self.positions)
        return "; ".join([*messages, f"and {more} more"] if more else messages)


class _Gaps:
    """Detector of lost frames in a transport stream: timestamps jump and a packet continuity counter skips values.

    Either alone is not a loss: timestamps also jump when a recording pauses, counters where files were concatenated.

    Parameters
    ----------
    path
        The video file.
    step
        Initial estimate of the duration of a frame, in the unit of ``dts``; observed durations are added to it.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.steps = deque([step], maxlen=16)  # recent intervals without a loss: the frame rate may vary
        self.before: Any = None

    def frames_before(self, packet: Any) -> int:
        """Return the number of frames missing between the packet of the previous call and this one."""
        previous, self.before = self.before, packet
        if previous is None or None in (previous.pos, packet.pos):
            return 0
        gap = packet.dts - previous.dts
        if gap > 1.5 * max(self.steps) and _lacks_packets(self.path, previous.pos, packet.pos):
            return max(round(gap / median(self.steps)) - 1, 1)
        self.steps.append(gap)
        return 0


_TS_PACKET = 188  # bytes; the first, the sync byte 0x47, is "G"


def _is_transport_stream(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2 * _TS_PACKET + 1)[::_TS_PACKET] == b"GGG"


def _lacks_packets(path: Path, start: int, stop: int) -> bool:
    """Return whether bytes ``start`` to ``stop`` of a transport stream lack packets (ISO 13818-1, 2.4.3)."""
    counters: dict[int, int] = {}
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(start, stop + 1, _TS_PACKET):
            packet = file.read(_TS_PACKET)
            if len(packet) < _TS_PACKET or packet[:1] != b"G":
                return True
            pid, flags = struct.unpack_from(">xHB", packet)
            pid &= 0x1FFF
            if pid == 0x1FFF:  # null packet: not counted
                continue
            has_payload, counter = bool(flags & 0x10), flags & 0xF
            is_announced = flags & 0x20 and packet[4] and packet[5] & 0x80
            previous = counters.get(pid, counter)
            if (
                counter not in (previous, (previous + has_payload) & 0xF) and not is_announced
            ):  # a packet may be sent twice
                return True
            counters[pid] = counter
    return False


def _with_following(items: Iterable[Any], count: int) -> Iterator[tuple[Any, ...]]:
    """Yield each item with the ``count`` items after it, padded with None at the end."""
    window: deque[Any] = deque(maxlen=count + 1)
    for item in chain(items, [None] * count):
        window.append(item)
        if len(window) > count:
            yield tuple(window)


def _until_broken(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items; if the iterator raises an FFmpeg error, yield the error as the last item."""
    try:
        yield from items
    except (av.FFmpegError, EOFError) as error:
        yield error


def _header_file_size(path: Path) -> int | None:
    """Return the file size in bytes stated in an AVI or Matroska header; FFmpeg accepts shorter files."""
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[:4] == b"RIFF":
        return 8 + int.from_bytes(start[4:8], "little")
    if start[:4] != b"\x1a\x45\xdf\xa3":
        return None
    size, after = _ebml_number(start, 4)
    segment = after + size
    if start[segment : segment + 4] != b"\x18\x53\x80\x67":
        return None
    size, after = _ebml_number(start, segment + 4)
    unknown = size + 1 == 1 << 7 * (after - segment - 4)  # all bits set: size unknown when written
    return None if unknown else after + size


def _ebml_number(content: bytes, offset: int) -> tuple[int, int]:
    """Return a variable-length Matroska integer and its end offset (RFC 8794, section 4)."""
    first = content[offset] if offset < len(content) else 0
    count = 9 - first.bit_length()
    return int.from_bytes(content[offset : offset + count], "big") & (1 << 7 * count) - 1, offset + count


def _display_matrix(frame: Any) -> Int[np.ndarray, "9"] | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(matrix, np.int32).copy()


def _upright(frame: Any, matrix: Int[np.ndarray, "9"] | None) -> UInt8[np.ndarray, "h w 3"]:
    """Apply the container's display matrix: x' = a x + c y, y' = b x + d y (ISO 14496-12, 6.2.2)."""
    image = frame.to_ndarray(format="rgb24")
    if matrix is None:
        return image
    a, b, _, c, d = matrix[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

"""Videos written here by PyAV, and the real one of the demonstration."""

import gc
import re
import struct
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from otus.data.video import Frame, Video, VideoWriter
from otus.errors import ImageError, ShapeError, UsageError


def scene(index: int, size_hw: tuple[int, int] = (96, 128)) -> np.ndarray:
    """A bright square that moves over a smooth ground; its corner tells the frame."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 60)], axis=2).astype(np.uint8)
    image[10:30, 2 * index : 2 * index + 20] = 255
    return image


def write(path: Path, count: int = 30, size_hw: tuple[int, int] = (96, 128), **options: object) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(options.get("codec", "libx264"), rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = *size_hw, "yuv420p"
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(index, size_hw), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_are_those_that_were_written(tmp_path):
    video = Video(write(tmp_path / "a.mp4"))
    assert (video.size_hw, video.frame_rate, video.frame_count) == ((96, 128), Fraction(30000, 1001), 30)
    frames = list(video)
    assert [frame.index for frame in frames] == list(range(30))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(30) * 1001 / 30000, atol=1e-3)
    for frame in frames:
        assert np.abs(frame.image.astype(int) - scene(frame.index)).mean() < 6
    assert [frame.index for frame in Video(video.path).frames(stride=7)] == [0, 7, 14, 21, 28]
    np.testing.assert_array_equal(next(islice(video.frames(stride=7), 2, None)).image, frames[14].image)
    with pytest.raises(UsageError, match="stride"):
        next(video.frames(stride=0))


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Give an MP4 file another display matrix."""
    content = bytearray(path.read_bytes())
    # ISO 14496-12, tkhd version 0: the matrix a b u c d v x y w is 40 bytes after the box's version.
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("quarters_clockwise", "matrix"), [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))]
)
def test_rotation_of_a_telephone_is_applied(tmp_path, quarters_clockwise, matrix):
    path = write(tmp_path / "a.mp4", count=3)
    plain = next(iter(Video(path))).image
    with_matrix(path, matrix)
    video = Video(path)
    turned = next(iter(video)).image
    np.testing.assert_array_equal(turned, np.rot90(plain, -quarters_clockwise))
    assert video.size_hw == turned.shape[:2]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_a_cut_video_gives_the_frames_before_the_cut(tmp_path, codec, share):
    path = write(tmp_path / "a.mp4", codec=codec)
    whole = [frame.image for frame in Video(path)]
    content = path.read_bytes()
    start = content.index(b"mdat")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: start + int((len(content) - start) * share)])
    got = []
    with pytest.raises(ImageError, match=r"cut.mp4: frame \d+: .*(cut off|ends here)") as caught:
        got.extend(frame for frame in Video(cut))
    assert caught.value.where == f"frame {len(got)}"
    assert 0 < len(got) < 30
    for frame, expected in zip(got, whole, strict=False):
        np.testing.assert_array_equal(frame.image, expected)
    # Every frame whose packets are whole comes: the next packet, in the order of the file, is the cut one.
    with av.open(str(cut)) as container:
        assert len(got) == sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(video=0))


@pytest.mark.parametrize(("suffix", "images"), [(".avi", b"movi"), (".mkv", b"\x1f\x43\xb6\x75")])
def test_containers_whose_cut_ffmpeg_does_not_tell(tmp_path, suffix, images):
    path = write(tmp_path / f"a{suffix}", codec="mpeg4")
    whole = [frame.image for frame in Video(path)]
    assert len(whole) == 30
    content = path.read_bytes()
    start = content.index(images)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: start + int((len(content) - start) * 0.6)])
    got = []
    with pytest.raises(ImageError, match=r"frame \d+: .*cut off") as caught:
        got.extend(frame for frame in Video(cut))
    assert caught.value.where == f"frame {len(got)}"
    assert 0 < len(got) < 30
    for frame, expected in zip(got, whole, strict=False):
        np.testing.assert_array_equal(frame.image, expected)


def test_what_is_no_video(tmp_path):
    for name, content in (
        ("empty.mp4", b""),
        ("text.mp4", b"hello " * 99),
        ("head.mp4", write(tmp_path / "a.mp4").read_bytes()[:500]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            Video(tmp_path / name)
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(ImageError, match=str(path)) as caught:
            Video(path)
        assert caught.value.kind == "missing_image"


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(ImageError, match="only audio"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_videos_raise_nothing_else(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(write(tmp_path / "a.mp4", count=4, size_hw=(32, 32)).read_bytes())
    for _ in range(int(rng.integers(1, 30))):
        content[int(rng.integers(0, len(content)))] = int(rng.integers(0, 256))
    (tmp_path / "b.mp4").write_bytes(content)
    try:
        assert sum(1 for _ in Video(tmp_path / "b.mp4")) < 1000
    except ImageError as error:
        assert "b.mp4" in str(error)  # noqa: PT017


@pytest.mark.parametrize("size_hw", [(96, 128), (33, 47), (1, 1)])
@pytest.mark.parametrize("has_h264", [True, False])
def test_writer(tmp_path, size_hw, has_h264, monkeypatch):
    if not has_h264:
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    path = tmp_path / "new" / "a.mp4"
    with VideoWriter(path, frame_rate=Fraction(30000, 1001)) as writer:
        for index in range(12):
            writer.add(scene(index, size_hw))
            assert not path.exists()
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264" if has_h264 else "mpeg4", "yuv420p")
    video = Video(path)
    height, width = size_hw
    assert video.size_hw == (height + height % 2, width + width % 2)
    assert (video.frame_count, video.frame_rate) == (12, Fraction(30000, 1001))
    for frame in video:
        assert np.abs(frame.image[:height, :width].astype(int) - scene(frame.index, size_hw)).mean() < 12
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


def test_writer_that_fails_leaves_nothing(tmp_path):
    for count, wrong in ((0, None), (1, scene(0)[:50]), (1, scene(0).astype(float))):

        def fill(count: int = count, wrong: np.ndarray | None = wrong) -> None:
            with VideoWriter(tmp_path / "a.mp4", frame_rate=10) as writer:
                for index in range(count):
                    writer.add(scene(index))
                if wrong is not None:
                    writer.add(wrong)

        with pytest.raises(UsageError if wrong is None else ShapeError):
            fill()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="frame_rate"):
        VideoWriter(tmp_path / "a.mp4", frame_rate=0)
    with pytest.raises(UsageError, match="suffix"):
        VideoWriter(tmp_path / "a.jpg", frame_rate=10)


def test_real_video_in_bounded_memory(shared_data):
    psutil = pytest.importorskip("psutil", reason="measures memory")
    video = Video(shared_data / "demo" / "video" / "person_walk_480x270.mp4")
    assert (video.size_hw, video.frame_rate, video.frame_count) == ((270, 480), 10, 400)
    process = psutil.Process()

    def passes(count: int) -> int:
        for _ in range(count):
            assert sum(1 for _ in video) == 400
        gc.collect()
        return process.memory_info().rss

    before = passes(1)
    # One pass decodes 155 MB of pixels; held frames or a leak of containers would show at once.
    assert passes(4) - before < 20e6


def mpegts(path: Path, count: int = 40, size_hw: tuple[int, int] = (96, 128)) -> bytes:
    """A transport stream: packets of 188 bytes, times that do not start at 0, a key frame every 12 frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12"})
        stream.height, stream.width, stream.pix_fmt = *size_hw, "yuv420p"
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(index, size_hw), format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def collected(path: Path) -> tuple[list[Frame], ImageError | None]:
    """All frames, and the error that ended them."""
    frames: list[Frame] = []
    try:
        frames.extend(Video(path))
    except ImageError as error:
        return frames, error
    return frames, None


def test_times_start_at_the_start_of_the_video(tmp_path):
    mpegts(tmp_path / "a.ts")
    with av.open(str(tmp_path / "a.ts")) as container:
        assert container.streams.video[0].start_time > 0
    np.testing.assert_allclose([frame.time_s for frame in Video(tmp_path / "a.ts")], np.arange(40) / 25, atol=1e-3)


def test_lost_packets_cost_a_few_frames_and_are_named(tmp_path):
    content = mpegts(tmp_path / "a.ts")
    packets = [content[place : place + 188] for place in range(0, len(content), 188)]
    images = [i for i, packet in enumerate(packets) if int.from_bytes(packet[1:3], "big") & 0x1FFF == 256]
    lost = images[len(images) // 2 - 1]
    (tmp_path / "lost.ts").write_bytes(b"".join(packets[:lost] + packets[lost + 1 :]))
    frames, error = collected(tmp_path / "lost.ts")
    assert 28 <= len(frames) < 41  # up to the next key frame there may be none
    assert frames[-1].time_s == pytest.approx(39 / 25, abs=1e-3)
    assert error is not None
    assert error.kind == "damaged_video"
    assert re.search(r"lost\.ts: \d\.\d\d s: packets are missing", str(error))
    assert 0.2 < float(str(error.where).split()[0]) < 1.5


def timed_mpegts(path: Path, ticks: list[int], **options: str) -> bytes:
    """A transport stream whose frames have these times, in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", **options})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(scene(index % 40), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("lost", [range(4, 5), range(6, 11), range(20, 24), range(30, 33)])
def test_lost_frames_are_counted(tmp_path, lost):
    content = timed_mpegts(tmp_path / "a.ts", list(range(0, 160, 4)), bf="0")
    with av.open(str(tmp_path / "a.ts")) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    lost_bytes = range(starts[lost.start], starts[lost.stop])
    kept = (
        content[place : place + 188]
        for place in range(0, len(content), 188)
        # of the images alone: the tables among them say nothing of a loss
        if place not in lost_bytes or int.from_bytes(content[place + 1 : place + 3], "big") & 0x1FFF != 256
    )
    damaged = b"".join(kept)
    (tmp_path / "lost.ts").write_bytes(damaged)
    _, error = collected(tmp_path / "lost.ts")
    assert error is not None
    said = f"{len(lost)} frames are missing before it" if len(lost) > 1 else "1 frame is missing before it"
    assert f"{lost.stop / 25:.2f} s: {said}" in str(error)
    (tmp_path / "joined.ts").write_bytes(content + damaged)
    _, error = collected(tmp_path / "joined.ts")
    assert error is not None
    place = re.search(rf"(\S+) s: {said}", str(error))
    assert place is not None
    assert float(place[1]) == pytest.approx(lost.stop / 25 + 1.6, abs=0.05)
    assert float(str(error.where).split()[0]) > 1.5


HALF_RATE_LATER = [*range(0, 100, 4), *range(100, 260, 8)]
TELEPHONE = np.cumsum(np.random.default_rng(0).choice([3, 3, 4, 4, 7, 11], 60)).tolist()
PAUSED = [*range(0, 80, 4), *range(300, 380, 4), *range(2000, 2080, 4)]


@pytest.mark.parametrize("bf", ["0", "3"])
@pytest.mark.parametrize("ticks", [HALF_RATE_LATER, TELEPHONE, PAUSED], ids=["two rates", "telephone", "paused"])
def test_time_that_jumps_in_a_whole_file_is_no_loss(tmp_path, ticks, bf):
    first = timed_mpegts(tmp_path / "a.ts", ticks, bf=bf)
    frames, error = collected(tmp_path / "a.ts")
    assert error is None
    np.testing.assert_allclose([frame.time_s for frame in frames], (np.array(ticks) - ticks[0]) / 100, atol=1e-3)
    (tmp_path / "joined.ts").write_bytes(first + first)
    frames, error = collected(tmp_path / "joined.ts")
    assert error is None
    assert len(frames) == 2 * len(ticks)


def test_joined_files_are_one_video_without_a_fault(tmp_path):
    first, second = mpegts(tmp_path / "a.ts"), mpegts(tmp_path / "b.ts", 20, (64, 160))
    (tmp_path / "joined.ts").write_bytes(first + first + second)
    frames, error = collected(tmp_path / "joined.ts")
    assert error is None
    assert [frame.image.shape[:2] for frame in frames] == [(96, 128)] * 80 + [(64, 160)] * 20
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(100) / 25, atol=1e-3)


def test_frames_after_a_damaged_one_are_given_and_many_places_are_counted(tmp_path):
    path = write(tmp_path / "a.mp4", codec="mpeg4")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for pos, size in packets[5:25:4]:
        content[pos : pos + size] = bytes(size)
    path.write_bytes(content)
    frames, error = collected(path)
    assert 20 <= len(frames) < 30
    assert frames[-1].time_s == pytest.approx(29 * 1001 / 30000, abs=1e-3)
    assert error is not None
    assert str(error).count("cannot be decoded") == 3
    assert "and 2 more" in str(error)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ],
)
def test_a_mirrored_display_matrix_mirrors(tmp_path, matrix, expected):
    path = write(tmp_path / "a.mp4", count=3)
    plain = next(iter(Video(path))).image
    with_matrix(path, matrix)
    np.testing.assert_array_equal(next(iter(Video(path))).image, expected(plain))

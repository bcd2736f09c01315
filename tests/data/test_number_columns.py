"""Records of nothing but numbers: every number to the last bit, and nothing read that the decoder would not read alike."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otus.data.dataset import Dataset, Images
from otus.data.formats import coco_results
from otus.data.formats.json_reader import stream as json_stream
from otus.data.formats.json_reader.number_records import NumberField, NumberRecords, read_number_records
from otus.structures import Categories

RECORDS = [
    {"image_id": 7, "category_id": 3, "bbox": [1, 2.5, 30.125, 4e1], "score": 0.25},
    {"image_id": 9, "category_id": 1, "bbox": [258.15240478515625, 0.1, 1e-3, 5.0], "score": 0.9871234297752380},
    {"image_id": 7, "category_id": 3, "bbox": [-1.5, -0.0, 640, 480], "score": 1},
]


def number(text: str) -> float | None:
    """What is read of a record with one number; None where it is left to the decoder."""
    records = read_number_records(
        f'{{"a": {text}}},'.encode(), 0, ["a"], {"a": NumberField(required=True)}, largest=math.inf
    )
    return float(records.columns["a"][0]) if records.count else None


@settings(max_examples=400)
@given(st.floats(-1e12, 1e12))
@example(0.1)
@example(2.0**53 + 2)
@example(5e-324)
def test_floats_come_back(value):
    read = number(repr(value))
    assert read == value if abs(value) > 1e-15 or value == 0 else read in (None, value)


@settings(max_examples=400)
@given(st.integers(0, 10**19), st.integers(-40, 40))
@example(9007199254740993, 0)  # between two doubles, and just beside
@example(9007199254740995, 0)
@example(90071992547409931, -1)
@example(18014398509481989, -1)
@example(10**19 - 1, 40)
def test_digits_and_exponents_round_as_float_does(digits, exponent):
    text = f"{digits}e{exponent}"
    if len(str(digits)) > 19:
        assert number(text) is None
    else:
        assert number(text) == float(text)


@pytest.mark.parametrize("seed", range(3))
def test_what_lies_between_two_doubles(seed):
    """The midpoints of neighbours and the numbers beside them, in 19 digits or less."""
    rng = np.random.default_rng(seed)
    for exact in rng.integers(2**53, 2**63, 500).tolist():
        spacing = math.ulp(float(exact))
        middle = int(exact // spacing * spacing + spacing / 2)
        for value in (middle - 1, middle, middle + 1):
            for text in (str(value), f"{value}.0" if value < 10**18 else str(value), f"{value}e3"):
                assert number(text) == float(text), text


def test_floats_of_any_size_are_exact_or_left():
    rng = np.random.default_rng(0)
    read = 0
    for bits in rng.integers(0, 2**63, 3000).tolist():
        value = struct.unpack("d", struct.pack("Q", bits))[0]
        if math.isfinite(value):
            parsed = number(repr(value))
            assert parsed in (None, value)
            read += parsed is not None
    assert read > 100


@pytest.mark.parametrize(
    "text", ["18446744073709551616", "1" * 30, "-", "1.", ".5", "01", "1e", "+1", "e5", "1.e5", "--1", ""]
)
def test_what_is_no_number_of_json_or_a_long_one_is_left(text):
    assert number(text) is None


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    images = Images(Path(), ("a.png", "b.png"), np.array([[480, 640], [480, 640]]), (7, 9))
    return Dataset(Path(), "coco", images, Categories(("cat", "owl"), ids=(1, 3)), None)


def outcome(text: str | bytes, dataset: Dataset, folder: Path):
    """Every column that comes of a text, and every problem."""
    file = folder / "results.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    problems: list[str] = []
    objects = coco_results.read_results(file, dataset, report=lambda problem: problems.append(str(problem)))
    return [
        getattr(objects, name).tolist() for name in ("image_index", "labels", "boxes_xyxy", "ids", "areas", "scores")
    ], problems


def by_decoder(text: str | bytes, dataset: Dataset, folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            json_stream, "read_number_records", lambda _, start, *others, **options: NumberRecords(0, {}, start)
        )
        return outcome(text, dataset, folder)


def read_fast(text: str, dataset: Dataset, folder: Path) -> int:
    """How many records were read without the decoder."""
    counts = []

    def counting(*asked, **options):
        records = read_number_records(*asked, **options)
        counts.append(records.count if records.end >= len(asked[0]) else 0)
        return records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "read_number_records", counting)
        outcome(text, dataset, folder)
    return sum(counts)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        json.dumps(RECORDS, separators=(",", ":")),
        json.dumps({"annotations": RECORDS}),
        json.dumps([{**one, "id": 5 + i, "area": 3} for i, one in enumerate(RECORDS)]),
        json.dumps([dict(reversed(one.items())) if i % 2 else one for i, one in enumerate(RECORDS)]),
        " [ \r\n\t" + ",\n\n".join(json.dumps(one) for one in RECORDS) + "\t]\n",
    ],
    ids=["plain", "indented", "tight", "an object", "ids and areas", "fields in another order", "space"],
)
def test_what_is_read_fast_is_what_is_decoded(text, dataset, tmp_path):
    assert outcome(text, dataset, tmp_path) == by_decoder(text, dataset, tmp_path)
    assert read_fast(text, dataset, tmp_path) == len(RECORDS)


@pytest.mark.parametrize(
    "change",
    [
        {"score": math.nan}, {"score": None}, {"score": "high"}, {"bbox": None}, {"bbox": [1, 2, 3]},
        {"bbox": [1e13, 0, 1, 1]},
        {"bbox": [0, 0, 1, 2, 3]}, {"image_id": 7.0}, {"image_id": 7.5}, {"image_id": "7"}, {"image_id": 2**64},
        {"extra": 5}, {"id": True}, {"segmentation": [[0, 0, 5, 0, 5, 5]]}, {"keypoints": [1, 2, 2]}, {"iscrowd": False},
    ],
    ids=str,
)  # fmt: skip
def test_anything_else_is_left_to_the_decoder(change, dataset, tmp_path):
    text = json.dumps([RECORDS[0], {**RECORDS[1], **change}, RECORDS[2]])
    assert outcome(text, dataset, tmp_path) == by_decoder(text, dataset, tmp_path)
    assert read_fast(text, dataset, tmp_path) == 0


def test_a_field_twice_or_missing_is_left_to_the_decoder(dataset, tmp_path):
    text = json.dumps(RECORDS)
    for old, new in (('"score": 0.25', '"score": 0.25, "score": 0.5'), (', "score": 0.25', "")):
        broken = text.replace(old, new)
        assert outcome(broken, dataset, tmp_path) == by_decoder(broken, dataset, tmp_path)
        assert read_fast(broken, dataset, tmp_path) == 0


@pytest.mark.parametrize("seed", range(150))
def test_broken_text_comes_to_the_same(seed, dataset, tmp_path):
    rng = np.random.default_rng(seed)
    text = bytearray(json.dumps(RECORDS).encode())
    for _ in range(int(rng.integers(1, 3))):
        place = int(rng.integers(len(text)))
        match rng.integers(3):
            case 0:
                text[place] = int(rng.choice(list(b'0123456789.,:{}[]"eE+- nax')))
            case 1:
                del text[place]
            case _:
                text.insert(place, int(rng.choice(list(b'0123456789.,:{}[]"eE+- '))))
    assert outcome(bytes(text), dataset, tmp_path) == by_decoder(bytes(text), dataset, tmp_path)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("window", [150, 333, 1000])
def test_windows_of_any_length_come_to_the_same(window, seed, dataset, tmp_path, monkeypatch):
    """Records that a window cuts, faulty ones among them, new fields on the way, a text with brackets in it."""
    rng = np.random.default_rng(seed)
    others = [
        {"score": None},
        {"bbox": None},
        {"image_id": 8},
        {"extra": 1},
        {"note": '[{"},'},
        {"id": 77},
        {"score": 5.5},
    ]
    records = []
    for _ in range(40):
        one = dict(RECORDS[int(rng.integers(3))])
        records.append(one if rng.random() < 0.9 else {**one, **others[int(rng.integers(len(others)))]})
    text = json.dumps(records, indent=[None, 1][seed % 2])
    whole = by_decoder(text, dataset, tmp_path)
    monkeypatch.setattr(json_stream, "_WINDOW", window)
    assert outcome(text, dataset, tmp_path) == whole
    assert by_decoder(text, dataset, tmp_path) == whole

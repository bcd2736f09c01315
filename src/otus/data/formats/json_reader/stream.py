"""Read lists of records from JSON files of any size, in batches, locating every problem.

The file is read in windows. A compiled scanner finds where the records of the outer arrays end, whatever the order of the
arrays; msgspec decodes the records, or a compiled reader if they are purely numeric. The file is never in memory as a whole.
"""

import codecs
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from otus.data.formats.json_reader import _scan_kernels as scanner
from otus.data.formats.json_reader.number_records import NumberField, NumberRecords, read_number_records
from otus.data.formats.text_files import Int64
from otus.data.git_lfs import LFS_PROBLEM, LFS_REMEDY, is_lfs_pointer
from otus.errors import DataError, Report

_WINDOW = 1 << 19  # fits in the processor's cache


class _Identified(msgspec.Struct):
    id: Int64


class _Decoder(NamedTuple):
    json: msgspec.json.Decoder[list[Any]]
    attributes: dict[str, str]


@dataclass(frozen=True)
class RecordBatch:
    """Records of an array: ``records[k]`` is its element ``indices[k]``.

    ``attributes`` maps field names to attributes of the records. If all records have the same numeric fields
    (:class:`NumberField`), ``columns`` has them by name instead of records: (N,) or (N, width).
    """

    array: str
    indices: np.ndarray
    records: list[Any]
    attributes: Mapping[str, str]
    columns: Mapping[str, np.ndarray] | None = None


@dataclass
class RecordReader:
    """Reads the records of the given arrays in a JSON file: an object of arrays, or one array.

    Parameters
    ----------
    path
        The file.
    arrays
        Record type (a msgspec Struct) by key of the array. A file that is itself an array is the array ``records_key``.
    report
        Called with a DataError for each invalid record, which names it, e.g. ``annotations[317].bbox``.
    open_ended
        Arrays whose records also get fields that are not declared, of any type. Optional fields that do not occur in the
        file are left out.
    number_fields
        Numeric fields, by array, that may be read as columns.
    largest
        Largest absolute value in columns.
    """

    path: Path
    arrays: Mapping[str, type[msgspec.Struct]]
    report: Report
    records_key: str = ""
    open_ended: Set[str] = frozenset()
    number_fields: Mapping[str, Mapping[str, NumberField]] = field(default_factory=dict)
    largest: float = math.inf
    found_arrays: set[str] = field(default_factory=set)
    other_values: dict[str, Any] = field(default_factory=dict)
    faulty_ids: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def __iter__(self) -> Iterator[RecordBatch]:
        """Yield batches in file order.

        Afterwards ``found_arrays`` has the keys of the arrays in the file, ``other_values`` its other keys and values,
        and ``faulty_ids`` the ids of invalid records by array, if they have any.
        """
        try:
            with _open_as_utf8(self.path) as file:
                yield from self._batches(file)
        except UnicodeDecodeError as error:
            problem = f"expected text in UTF-8 or UTF-16, but {error}"
            self.report(DataError(problem, file=self.path, remedy="save it as UTF-8", kind="not_utf8"))
        except OSError as error:
            self.report(
                DataError(
                    f"cannot be read: {error.strerror}", file=self.path, remedy="check the path and its permissions"
                )
            )

    def _batches(self, file: IO[bytes]) -> Iterator[RecordBatch]:
        window = file.read(_WINDOW)
        offset = 3 if window.startswith(b"\xef\xbb\xbf") else 0
        first = window[offset:].lstrip()[:1]
        if not first:
            self.report(DataError("the file is empty", file=self.path, remedy="write it again", kind="broken_json"))
            return
        if is_lfs_pointer(self.path):
            self.report(DataError(LFS_PROBLEM, file=self.path, remedy=LFS_REMEDY))
            return
        if (first == b"[" and not self.records_key) or first not in b"[{":
            description = "an array" if first == b"[" else f"a text that starts with {first.decode('latin-1')!r}"
            self.report(DataError(f"expected a JSON object, got {description}", file=self.path, kind="broken_json"))
            return
        level = 1 if first == b"[" else 2
        decoders = {key: self._decoder(key, ()) for key in self.arrays}
        field_names: dict[str, list[str]] = {key: [] for key in self.arrays}
        state = np.zeros(scanner.STATE_SIZE, dtype=np.int64)
        fields = np.zeros(scanner.MAX_FIELDS, dtype=np.uint64)
        key = self.records_key if level == 1 else ""
        current_array: str | None = None  # the array that the scanner is in
        skeleton = bytearray()  # the text without the records
        position = offset  # end of the scan
        pending = offset  # start of the text that is not decoded yet
        index = 0  # of the next record
        base = 0  # offset of the window in the file
        while True:
            state[scanner.LAST_COMMA], state[scanner.COMMAS] = -1, 0
            if current_array is not None:  # numeric records with the fields so far need no scanner
                numbers = self._numbers(decoders[current_array], current_array, window, pending)
                if numbers.count:
                    indices = np.arange(index, index + numbers.count)
                    yield RecordBatch(current_array, indices, [], decoders[current_array].attributes, numbers.columns)
                    index += numbers.count
                    position = pending = numbers.end
                    state[[scanner.DEPTH, scanner.IN_STRING, scanner.ESCAPED, scanner.AFTER_COLON]] = level, 0, 0, 0
            text = np.frombuffer(window, dtype=np.uint8)
            event = -1
            while event != scanner.END:
                event, position = scanner.scan(text, position, level, state, fields)
                string = (
                    window[state[scanner.STRING_START] : position - 1] if event in (scanner.KEY, scanner.FIELD) else b""
                )
                if event == scanner.KEY:
                    key = string.decode("utf-8", "replace")
                elif event == scanner.OPENED and key in self.arrays and window[position - 1 : position] == b"[":
                    skeleton += window[pending:position]
                    current_array, pending, index = key, position, 0
                    self.found_arrays.add(current_array)
                    state[scanner.COMMAS], state[scanner.FIELDS] = 0, 0
                elif event == scanner.CLOSED and current_array is not None:
                    yield from self._decode(
                        decoders[current_array], current_array, window[pending : position - 1], index, base + pending
                    )
                    current_array, pending = None, position - 1
                elif event == scanner.FIELD and current_array is not None and current_array in self.open_ended:
                    field_names[current_array].append(string.decode("utf-8", "replace"))
                    decoders[current_array] = self._decoder(current_array, field_names[current_array])
            comma = int(state[scanner.LAST_COMMA])
            if current_array is None:
                skeleton += window[pending:]
                pending = len(window)
            elif comma >= pending:
                yield from self._decode(
                    decoders[current_array], current_array, window[pending:comma], index, base + pending
                )
                index += int(state[scanner.COMMAS])
                pending = comma + 1
            more = file.read(_WINDOW)
            if not more:
                break
            # If the window ends inside a string, keep the text from its start.
            kept = min(pending, int(state[scanner.STRING_START])) if state[scanner.IN_STRING] else pending
            window = window[kept:] + more
            base, position, pending = base + kept, position - kept, pending - kept
            state[scanner.STRING_START] -= kept
        self._check_skeleton(bytes(skeleton), complete=current_array is None, inside=current_array, index=index)

    def _decoder(self, array: str, field_names: Sequence[str]) -> _Decoder:
        """Return a decoder for records with the given fields."""
        declared = self.arrays[array]
        known = {field.name: field for field in msgspec.structs.fields(declared)}
        if array not in self.open_ended:
            return _Decoder(msgspec.json.Decoder(list[declared]), {name: name for name in known})  # type: ignore[valid-type]
        # msgspec accepts only such names; others come from broken JSON.
        printable_names = [name for name in field_names if name.isprintable() and not set(name) & {'"', "\\"}]
        names = dict.fromkeys([name for name, field in known.items() if field.required] + printable_names)
        attributes = {name: name if name in known else f"extra_{k}" for k, name in enumerate(names)}
        fields = [
            (attribute, *((Any, None) if name not in known else _type_and_default(known[name])))
            for name, attribute in attributes.items()
        ]
        renamed = {attribute: name for name, attribute in attributes.items()}
        record = msgspec.defstruct(declared.__name__, fields, rename=renamed, gc=False)
        return _Decoder(msgspec.json.Decoder(list[record]), attributes)  # type: ignore[valid-type]

    def _decode(self, decoder: _Decoder, array: str, text: bytes, first: int, offset: int) -> Iterator[RecordBatch]:
        numbers = self._numbers(decoder, array, text + b",", 0)
        if numbers.end > len(text):
            indices = np.arange(first, first + numbers.count)
            yield RecordBatch(array, indices, [], decoder.attributes, numbers.columns)
            return
        faulty: list[int] = []
        try:
            records = _decode_checked(decoder.json, text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            records, faulty = self._decode_one_by_one(decoder.json, array, text, first, offset)
        if records:
            indices = np.arange(first, first + len(records) + len(faulty))
            yield RecordBatch(array, np.setdiff1d(indices, faulty, assume_unique=True), records, decoder.attributes)

    def _numbers(self, decoder: _Decoder, array: str, text: bytes, start: int) -> NumberRecords:
        known = self.number_fields.get(array, {})
        return read_number_records(text, start, list(decoder.attributes), known, largest=self.largest)

    def _decode_one_by_one(
        self, decoder: msgspec.json.Decoder[list[Any]], array: str, text: bytes, first: int, offset: int
    ) -> tuple[list[Any], list[int]]:
        cuts = scanner.commas(np.frombuffer(text, dtype=np.uint8)).tolist()
        records: list[Any] = []
        faulty: list[int] = []
        for index, (start, end) in enumerate(zip([-1, *cuts], [*cuts, len(text)], strict=True), first):
            record = text[start + 1 : end]
            try:
                records += _decode_checked(decoder, record) if record.strip() else _raise_empty()
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                faulty.append(index)
                with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
                    self.faulty_ids[array].add(msgspec.json.decode(record, type=_Identified).id)
                self.report(self._explain(error, f"{array}[{index}]", record, offset + start + 1))
        return records, faulty

    def _explain(self, error: Exception, record: str, text: bytes, offset: int) -> DataError:
        if isinstance(error, msgspec.ValidationError):
            problem, _, field = str(error).partition(" - at `$[0]")
            return DataError(
                problem, file=self.path, where=record + field.rstrip("`"), remedy="correct the record or remove it"
            )
        if isinstance(error, UnicodeDecodeError):
            problem = f"expected text in UTF-8, but {error}"
            return DataError(problem, file=self.path, where=record, remedy="save the file as UTF-8", kind="not_utf8")
        try:
            for field, number in _non_finite_numbers(json.loads(text)):
                problem, remedy = f"expected a finite number, got {number}", "correct it or remove the record"
                return DataError(problem, file=self.path, where=record + field, remedy=remedy, kind="not_finite")
        except (ValueError, RecursionError):
            pass
        return DataError(
            f"broken JSON in line {self._line(offset)} or after: {error}",
            file=self.path,
            where=record,
            remedy="correct the record or remove it",
            kind="broken_json",
        )

    def _line(self, offset: int) -> int:
        with _open_as_utf8(self.path) as file:
            count = 1
            while offset > 0 and (part := file.read(min(offset, _WINDOW))):
                count += part.count(b"\n")
                offset -= len(part)
        return count

    def _check_skeleton(self, skeleton: bytes, *, complete: bool, inside: str | None, index: int) -> None:
        """Report invalid JSON around the records, and values that should be arrays."""
        if not complete:
            self.report(
                DataError(
                    "the file ends in the middle of an array",
                    file=self.path,
                    where=f"{inside}[{index}]",
                    remedy="it is truncated; copy or write it again",
                    kind="broken_json",
                )
            )
            return
        try:
            frame = msgspec.json.decode(skeleton.decode())
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            problem = f"broken JSON around the records: {error}"
            self.report(DataError(problem, file=self.path, remedy="write it again", kind="broken_json"))
            return
        if not isinstance(frame, dict):
            return
        self.other_values = {key: value for key, value in frame.items() if key not in self.arrays}
        for key in self.arrays:
            if key in frame and key not in self.found_arrays:
                self.found_arrays.add(key)
                problem = f"expected an array, got {type(frame[key]).__name__}"
                self.report(DataError(problem, file=self.path, where=key, kind="broken_json"))


def _open_as_utf8(path: Path) -> IO[bytes]:
    """Open a file as UTF-8 bytes, transcoding UTF-16 and UTF-32."""
    file = path.open("rb")
    encoding = json.detect_encoding(file.read(4))
    file.seek(0)
    return file if encoding.startswith("utf-8") else codecs.EncodedFile(file, "utf-8", encoding)


def _decode_checked(decoder: msgspec.json.Decoder[list[Any]], text: bytes) -> list[Any]:
    """Decode records, validating UTF-8 first, which msgspec does not."""
    if not text.isascii():
        text.decode()
    return decoder.decode(b"[" + text + b"]")


def _type_and_default(field: msgspec.structs.FieldInfo) -> tuple[Any, ...]:
    return (field.type,) if field.required else (field.type, field.default)


def _raise_empty() -> list[Any]:
    raise msgspec.DecodeError("a comma without a record")


def _non_finite_numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the location of NaN and infinity, which Python's json module writes."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _non_finite_numbers(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite_numbers(item, f"{path}[{index}]")


def write_records(file: IO[bytes], records: Iterator[Any]) -> None:
    """Write an array of records one by one."""
    encode = msgspec.json.Encoder().encode
    separator = b"[\n"
    for record in records:
        file.write(separator + encode(record))
        separator = b",\n"
    file.write(b"\n]" if separator == b",\n" else b"[]")

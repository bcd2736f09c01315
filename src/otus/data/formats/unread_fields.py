"""Count the fields of a source that are not read, so that a conversion can report them."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from otus.data.dataset import UnreadField
from otus.data.formats.json_reader.stream import RecordBatch

Record = TypeVar("Record", bound=msgspec.Struct)

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MAX_CHARACTERS = 60


@dataclass
class UnreadFields:
    """Counter of values per field. Empty values (null, "", [], {}) are not counted."""

    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, values: Iterable[Any]) -> None:
        """Count the values of a field."""
        non_empty = [value for value in values if value not in _EMPTY]
        if non_empty:
            self._counts[name] = self._counts.get(name, 0) + len(non_empty)
            self._examples.setdefault(name, _short(str(non_empty[0])))

    def note_raw(self, prefix: str, fields: Mapping[str, msgspec.Raw], *, known: Set[str]) -> None:
        """Count the fields of a JSON object that are not known."""
        for name, raw in fields.items():
            if name not in known:
                self.note(prefix + name, [_value(bytes(raw))])

    def declared(self, batch: RecordBatch, record: type[Record]) -> list[tuple[int, Record]]:
        """Return the indices and records of a batch, reduced to the fields of ``record``; count the other fields."""
        known = [name for name in batch.attributes if name in record.__struct_fields__]
        for name, attribute in batch.attributes.items():
            if name not in known:
                self.note(f"{batch.array}[].{name}", (getattr(record, attribute) for record in batch.records))
        records = (record(**{name: getattr(full, name) for name in known}) for full in batch.records)
        return list(zip(batch.indices.tolist(), records, strict=True))

    def finish(self) -> tuple[UnreadField, ...]:
        """Return all counted fields, in order of first appearance."""
        return tuple(UnreadField(name, count, self._examples[name]) for name, count in self._counts.items())


def _value(text: bytes) -> Any:
    """Return a decoded JSON value; the text itself if it is long or invalid."""
    try:
        if len(text) <= _MAX_CHARACTERS:
            return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return text.decode("utf-8", "replace")


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"

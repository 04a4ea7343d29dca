"""JSON in with our errors, JSON out atomically."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from vtskip._files import write_atomic
from vtskip.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
CHUNK = 1 << 20  # characters read at a time from a long array
LONGEST_BREAK = 4  # characters of a number that say nothing without those behind them, such as "e-"


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises DataError that starts with ``place``, also for absurd depths and numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{place}: not valid JSON: nested too deeply") from None
    except ValueError as e:  # a syntax error, or an integer of thousands of digits
        raise DataError(f"{place}: not valid JSON: {e}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError that names the file (and line, for a syntax error)."""
    with _readable(path) as file:
        return parse_json(_read(file, path), str(path))


def read_array(path: Path) -> Iterator[Any]:
    """The objects of a JSON array, one at a time: the file is never in memory as a whole. Raises DataError naming the file."""
    with _readable(path) as file:
        pieces = _Pieces(file, path)
        if pieces.peek() != "[":
            raise DataError(f"{path}: expected a list of objects")
        pieces.at += 1
        number = 0
        while pieces.peek() != "]":
            place = f"{path}: record {number}"
            if number and pieces.peek() == ",":
                pieces.at += 1
            elif number:
                raise DataError(f"{place}: expected ',' or ']' before it, got {pieces.peek()!r}")
            if pieces.peek() not in ("{", ""):
                raise DataError(f"{place}: expected an object, got {pieces.peek()!r}...")
            yield pieces.value(place)
            number += 1
        pieces.at += 1
        if pieces.peek():
            raise DataError(f"{path}: not valid JSON: something follows the list")


def read_members(path: Path, inner: str) -> Iterator[tuple[bool, str, Any]]:
    """``(whether under inner, key, value)`` of the members of a JSON object, one at a time, and in place of the object under
    ``inner`` those of that: the file is never in memory as a whole. Raises DataError naming the file.
    """
    with _readable(path) as file:
        pieces = _Pieces(file, path)
        yield from _members(pieces, inner, False)
        if pieces.peek():
            raise DataError(f"{path}: not valid JSON: something follows the object")


def _members(pieces: "_Pieces", inner: str | None, under: bool) -> Iterator[tuple[bool, str, Any]]:
    if pieces.peek() != "{":
        raise DataError(f"{pieces.path}: expected an object, got {pieces.peek()!r}")
    pieces.at += 1
    place, first = "its first key", True
    while pieces.peek() != "}":
        if not first:
            pieces.expect(",", f"behind {place}")
        if pieces.peek() != '"':
            raise DataError(f"{pieces.path}: not valid JSON: expected a key behind {place}, got {pieces.peek()!r}")
        key = pieces.value(f"{pieces.path}: the key behind {place}")
        place, first = repr(key[:80]), False
        pieces.expect(":", f"behind {place}")
        if key == inner and pieces.peek() == "{":
            yield from _members(pieces, None, True)
        else:
            pieces.peek()  # to where the value starts
            yield under, key, pieces.value(f"{pieces.path}: {place}")
    pieces.at += 1


def first_character(path: Path) -> str:
    """The first character that is no space, empty for an empty file."""
    with _readable(path) as file:
        return _Pieces(file, path).peek()


class _Pieces:
    """The text of a file from place ``at`` on; more of it is read when it is needed."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self.file, self.path, self.text, self.at = file, path, "", 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        rest = self.text[self.at :]
        piece = _read(self.file, self.path, max(CHUNK, len(rest)))  # doubled each time: a long record costs linear time
        self.text, self.at = rest + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is no space, empty at the end of the file."""
        while True:
            self.at = cast(re.Match[str], _SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, character: str, where: str) -> None:
        """Step over a character. Raises DataError for another one."""
        found = self.peek()
        if found != character:
            raise DataError(f"{self.path}: not valid JSON: expected {character!r} {where}, got {found!r}")
        self.at += 1

    def value(self, place: str) -> Any:
        """The JSON value that starts here."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                size = end - self.at
                if len(self.text) - end < LONGEST_BREAK and self.more():
                    continue  # a number may go on in what follows
                self.at += size
                return value
            except RecursionError:
                raise DataError(f"{place}: not valid JSON: nested too deeply") from None
            except ValueError as e:
                if not self.more():
                    raise DataError(f"{place}: not valid JSON, or cut off ({getattr(e, 'msg', e)})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1. They are parsed by whoever needs them."""
    with _readable(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as e:
            raise DataError(f"{path}: not valid text: {e}") from None


def _readable(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from None


def _read(file: TextIO, path: Path, size: int = -1) -> str:
    try:
        return file.read(size)
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not valid JSON: {e}") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())

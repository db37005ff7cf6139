"""Values of a foreign file, each asked for with its type and bounds: one line says what is wrong.

config.json, params.json, GGUF metadata and device files are read through this. What the values
mean is for config_readers.py and the other readers to say.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 256 * 2**20  # the largest tokenizer.json in use has 33 MB
_REQUIRED: Any = object()


def shown(value: object, limit: int = 60) -> str:
    """A value as an error line can carry it."""
    if isinstance(value, int) and value.bit_length() > 100:  # Python writes no 5,000 digits
        return f"about {'-' if value < 0 else ''}2**{value.bit_length()}"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def open_file(path: Path) -> BinaryIO:
    """A regular file opened for reading; what prevents it is a ValueError that says so."""
    try:
        # a pipe or a device would wait for ever, or never end
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is not a regular file")
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {_clipped(path)}: {error.strerror or error}") from None


def read_text(path: Path, *, limit: int = MAX_JSON_BYTES) -> str:
    """UTF-8 text of a regular file; whatever prevents it is a ValueError of one line."""
    with open_file(path) as stream:
        try:
            content = stream.read(limit + 1)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > limit:
        raise ValueError(f"{path} is larger than {limit // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None


def is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system could have does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _clipped(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]} ({len(text)} characters)"


def parse_json(text: str, what: object, **options: Any) -> Any:
    """JSON whose numbers are all finite; `what` names its source in errors."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits[:20]} is too large")
        return value

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number, **options)
    except RecursionError:
        raise ValueError(f"{what} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"{what} is not valid JSON: {reason}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, an object is needed")
    return content


class Fields:
    """Named values of one source. A value that is None or absent takes the reader's default."""

    def __init__(self, values: Mapping[str, Any], where: object, prefix: str = "") -> None:
        """`where` names the source in errors, `prefix` stands before every name in it."""
        self.values, self.where, self.prefix = values, where, prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.values if name in self)

    def refuse(self, name: str, needed: str) -> ValueError:
        """The error of a value that is not what is needed."""
        return ValueError(
            f"{self.where}: {self.prefix}{name} is {shown(self.values.get(name))}: use {needed}"
        )

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is _REQUIRED:
            raise ValueError(f"{self.where} lacks {self.prefix}{name}")
        return default if value is None else value

    def integer(self, name: str, low: int, high: int, default: Any = _REQUIRED) -> Any:
        """A whole number from `low` to `high`, or the default as it is."""
        value = self._value(name, default)
        if name not in self:
            return value
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not math.isfinite(value) or value != int(value) or not low <= value <= high:
            raise self.refuse(name, f"a whole number from {low} to {high}")
        return int(value)

    def number(self, name: str, low: float, high: float, default: Any = _REQUIRED) -> Any:
        """A finite number from `low` to `high`, or the default as it is."""
        value = self._value(name, default)
        if name not in self:
            return value
        if not _is_number(value) or not low <= value <= high:
            raise self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...] | None:
        """A list of finite numbers, None if it is absent."""
        if name not in self:
            return None
        values = self.values[name]
        good = isinstance(values, list | tuple)
        if not good or not all(_is_number(value) and low <= value <= high for value in values):
            raise self.refuse(name, f"a list of numbers from {low:g} to {high:g}")
        return tuple(float(value) for value in values)

    def flag(self, name: str, default: Any = False) -> Any:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool) and name in self:
            raise self.refuse(name, "true or false")
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str) and name in self:
            raise self.refuse(name, "a text")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings, empty if it is absent."""
        values = self._value(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.refuse(name, "a list of texts")
        return values

    def table(self, name: str) -> Fields:
        """The object of that name, empty if it is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self.refuse(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def below(self, prefix: str) -> Fields:
        """The values whose names begin so; errors keep the whole names."""
        cut = {name[len(prefix) :]: v for name, v in self.values.items() if name.startswith(prefix)}
        return Fields(cut, self.where, self.prefix + prefix)

    def whole_numbers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """One whole number or a list of them, empty if it is absent."""
        value = self._value(name, [])
        values = value if isinstance(value, list | tuple) else [value]
        if not all(type(v) is int and low <= v <= high for v in values):
            raise self.refuse(name, f"whole numbers from {low} to {high}")
        return tuple(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

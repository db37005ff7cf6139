"""What TT-NN refused, in one line: the op, the part of the model, our line, TT-NN's own words."""

from __future__ import annotations

import re
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

from backends import op_record

_ROOT = Path(__file__).resolve().parents[2]
_BACKENDS = _ROOT / "backends"
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
_FATAL = re.compile(
    r"TT_(?:FATAL|THROW) @ (?P<place>\S+): ?(?P<condition>.*?)(?:\ninfo:\n(?P<words>.*))?$", re.S
)
_SIGNATURE_NOISE = re.compile(r"\s+")

_EMPTY = ("false", "tt::exception")  # conditions of checks that always fail


class DryRunError(RuntimeError):
    """A call that would have failed on silicon as well."""

    def __init__(self, op: str, reason: str, *, scope: str = "", where: str = "") -> None:
        self.op, self.reason, self.scope, self.where = op, reason, scope, where
        place = f" in {scope}" if scope else ""
        line = f" at {where}" if where else ""
        super().__init__(f"ttnn.{op}{place}{line}: {reason}")

    def __reduce__(self) -> Any:
        return (_rebuild, (self.op, self.reason, self.scope, self.where))


def _rebuild(op: str, reason: str, scope: str, where: str) -> DryRunError:
    return DryRunError(op, reason, scope=scope, where=where)


def refused(op: str, reason: str) -> DryRunError:
    """The error for a call that is being made right now."""
    return DryRunError(op, reason, scope=op_record.current_scope(), where=calling_line())


def calling_line() -> str:
    """file:line of the innermost frame of ours above backends/, else of the caller's script."""
    frame = sys._getframe(1)
    outside = ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _BACKENDS not in path.parents:
            line = f"{frame.f_lineno}"
            if _ROOT in path.parents:
                return f"{path.relative_to(_ROOT)}:{line}"
            if not outside and not any(place in path.parents for place in _INSTALLED):
                outside = f"{path}:{line}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside


def words_of(error: Exception, kwargs: dict[str, Any]) -> str:
    """TT-NN's own words on one line, without paths of the machine that built it."""
    text = str(error).strip()
    if isinstance(error, TypeError) and "incompatible function arguments" in text:
        return _mismatch(text, kwargs)
    found = _FATAL.search(text)
    if not found:
        return _SIGNATURE_NOISE.sub(" ", text) or type(error).__name__
    condition = _SIGNATURE_NOISE.sub(" ", found["condition"]).strip()
    words = _SIGNATURE_NOISE.sub(" ", found["words"] or "").strip()
    place = found["place"].rsplit("/", 1)[-1]
    if not words:
        return f"{condition} ({place})"
    return f"{words} ({place})" if condition in _EMPTY else f"{words} ({condition}, {place})"


def _mismatch(text: str, kwargs: dict[str, Any]) -> str:
    """Which argument a signature does not take; the binding itself only lists all of them."""
    called = re.search(
        r"(?:Called with|Invoked with types):\s*(.*?)\s*(\n\s*\nAvailable|$)", text, re.S
    )
    signatures = text.split("Available signatures:", 1)[-1]
    known = ": " in signatures
    unknown = [name for name in kwargs if not re.search(rf"[(\s]{name}:", signatures)]
    if known and unknown:
        return f"there is no parameter {', '.join(unknown)} (incompatible function arguments)"
    odd = [
        name
        for name, value in kwargs.items()
        if isinstance(value, float) and not _is_float32(value)
    ]
    hint = f"; {', '.join(odd)} must be exact in float32" if odd else ""
    call = _SIGNATURE_NOISE.sub(" ", called[1]) if called else ""
    return f"incompatible function arguments: {call}{hint}"


def _is_float32(value: float) -> bool:
    return struct.unpack("f", struct.pack("f", value))[0] == value

"""Chat templates as transformers renders them: sandboxed, and bounded in time and size.

A template is a program that came with somebody's weights. It is compiled with the words that
`apply_chat_template` knows; one that loops, grows or breaks is a ValueError of one line.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 5.0  # published templates take less than a millisecond
MAX_CHARACTERS = 2**25  # of any text a template makes; the longest context has 2**24
_MAX_COUNT = 10**6  # of repetitions, columns and the like
_JOIN = "joined within bounds"


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        self._template = _guarded(lambda: _Sandbox().from_string(source), "cannot be read")

    def render(self, messages: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
        """The conversation up to where the assistant begins; `names` are special tokens."""

        def run() -> str:
            parts: list[str] = []
            size = 0
            for part in self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **names,
            ):
                parts.append(part)
                size += len(part)
                _check_size(size)
            return "".join(parts)

        return _guarded(lambda: _bounded(run), "cannot be rendered")


def _bounded(run: Callable[[], str]) -> str:
    """Run what is made of Python lines, and give up at a line after too long a time."""
    deadline = time.monotonic() + SECONDS

    def trace(*_: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it ran longer than {SECONDS:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return run()
    finally:
        sys.settrace(before)


def _guarded(run: Callable[[], Any], what: str) -> Any:
    """Whatever a template raises as a ValueError of one line."""
    try:
        return run()
    except _Refusal as refusal:
        raise ValueError(
            f"the model's chat template refuses this conversation: {refusal}"
        ) from None
    except Exception as error:  # a template may raise anything
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__
        raise ValueError(
            f"the model's chat template {what} ({reason}): mend it, or run with --instruct 0"
        ) from None


class _Refusal(TemplateError):
    """What a template says by raise_exception."""


def _raise_exception(message: Any) -> None:
    raise _Refusal(" ".join(str(message).split())[:300])


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: without jinja's escapes for HTML."""
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "indent": indent}
    return json.dumps(value, separators=separators, sort_keys=sort_keys, **options)


class _Generation(Extension):
    """{% generation %} marks what the assistant said: here its content is all that counts."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements within."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Joins(NodeTransformer):
    """Turns `a ~ b`, which a sandbox cannot see, into a filter of ours."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja's name)
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _JOIN, [], [], None, None, lineno=node.lineno)


class _Sandbox(ImmutableSandboxedEnvironment):
    """transformers' environment, in which nothing can be made larger than the bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        for name in ("batch", "center", "format", "indent", "join", "replace", "slice", "wordwrap"):
            self.filters[name] = _checked(name, self.filters[name])
        self.filters |= {"tojson": _to_json, _JOIN: _join}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Joins().visit(source), *args, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make much of little."""
        if operator == "*":
            sizes = (len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right))
            if any(hasattr(x, "__len__") for x in (left, right)):
                first, second = sizes
                _check_size(first * second)
            elif any(_is_long(x) for x in (left, right)):
                raise SecurityError("a number is too large")
        elif operator == "**" and (_is_long(left) or abs(right) > 64):
            raise SecurityError("a number is too large")
        elif operator == "%" and isinstance(left, str):
            _check_count([right], {})
            _check_form(left)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format`, which jinja has a sandbox of its own for."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def call(*args: Any, **kwargs: Any) -> str:
            _check_form(value.__self__)
            return wrapped(*args, **kwargs)

        return call

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Methods of texts: their widths and counts are bounded."""
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            _check_count(args, kwargs)
            if getattr(called, "__name__", "") == "replace" and len(args) > 1:
                _check_size(len(owner) * max(1, len(str(args[1]))))
        return super().call(context, called, *args, **kwargs)


def _join(parts: Sequence[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that can make much of little, bounded; still marked as jinja marks it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        _check_count(args, kwargs)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, str)]
        if name == "replace" and len(given) > 2:
            _check_size(len(given[0]) * max(1, len(given[2])))
        if name == "format" and given:
            _check_form(given[0])
        if name == "join":
            _check_size(1000 * max(map(len, given), default=0))
        return function(*args, **kwargs)

    vars(call).update(vars(function))
    return call


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")


def _check_count(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(x, int) and abs(x) > _MAX_COUNT for x in (*args, *kwargs.values())):
        raise SecurityError(f"it asks for more than {_MAX_COUNT} of something")


def _check_form(form: str) -> None:
    """Widths within a format string."""
    digits = "".join(c if c.isdigit() else " " for c in form).split()
    if any(len(word) > len(str(_MAX_COUNT)) for word in digits):
        raise SecurityError("a format asks for too wide a text")


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 4096

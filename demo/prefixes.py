"""Prefix caching as the demos show it: part of every prompt is in the cache before it is asked."""

from __future__ import annotations

from collections.abc import Sequence

from demo.session import Session
from runtime.requests import Request


def fill_prefixes(session: Session, requests: Sequence[Request]) -> None:
    """Put the leading part of every prompt into the cache, where the prompt will find it."""
    ratio, generator = session.case.prefix_cached_ratio, session.generator
    parts = [
        Request(part, 1, is_long=generator.marked(request).is_long)
        for request in requests
        if (part := request.prompt[: int(ratio * len(request.prompt))])
    ]
    for _ in generator.generate(parts):
        pass

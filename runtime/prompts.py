"""Prompt sets: JSON entries {prompt, context?, max_length?} read, checked and turned into text.

A context is a URL (downloaded once, kept), a file, or {"haystack": {...}} (runtime/haystack.py).
Tokens are runtime/tokenizer.py's business; only lengths are asked for here.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from backends.scratch import write_whole
from models.fields import is_there, read_text, shown
from runtime.haystack import Haystack, build_haystack

CONTEXT_CACHE = Path("generated/context_cache")
MAX_CONTEXT_BYTES = 16 * 2**20
DOWNLOAD_SECONDS = 30.0
IMAGE_WORD = "<|image|>"  # what stands for an image in a prompt's text
_SCHEMES = ("http://", "https://")
TEMPLATE_ROOM = 128  # tokens kept free around a generated context for the chat template


class HaystackContext(BaseModel):
    """A context that is generated rather than read."""

    model_config = ConfigDict(extra="forbid")

    haystack: Haystack


class PromptEntry(BaseModel):
    """One entry of a prompts file; `max_length` counts characters of the context.

    An image is a file, relative to the prompts file or to here, or drawn (runtime/images.py);
    several are a list.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    image: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    context: str | HaystackContext | None = None
    max_length: int | None = Field(default=None, gt=0)

    @property
    def declared_tokens(self) -> int:
        """Tokens a generated context asks for; 0 where the length is known only when read."""
        return self.context.haystack.tokens if isinstance(self.context, HaystackContext) else 0


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model will be asked it; `answer` is known for generated contexts.

    Its images are named here and read by runtime/images.py; the text says where they belong.
    """

    text: str
    answer: str | None = None
    images: tuple[Any, ...] = ()


def load_entries(path: Path) -> list[PromptEntry]:
    """Read a prompts file; every defect is one line that names the file and the entry."""
    raw = read_text(path, limit=MAX_CONTEXT_BYTES)
    try:
        entries = TypeAdapter(list[PromptEntry]).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"prompts file {path}: {where}: {first['msg']}; expected a JSON list like "
            '[{"prompt": "...", "context": "https://...", "max_length": 2048}]'
        ) from None
    if not entries:
        raise ValueError(f"prompts file {path} has no entries: give at least one prompt")
    return entries


def load_prompts(
    path: Path,
    *,
    instruct: bool,
    count_tokens: Callable[[str], int] = len,
    room: int = 2**20,
) -> list[Prompt]:
    """Prompts of a file with their contexts; `room` (tokens) bounds generated contexts."""
    return [
        build_prompt(
            entry, folder=path.parent, instruct=instruct, count_tokens=count_tokens, room=room
        )
        for entry in load_entries(path)
    ]


def build_prompt(
    entry: PromptEntry,
    *,
    folder: Path,
    instruct: bool,
    count_tokens: Callable[[str], int],
    room: int,
) -> Prompt:
    """Context and question as one text: instruct models get the context in backticks first."""
    if entry.image is not None:
        return _with_images(entry, folder)
    if entry.context is None:
        return Prompt(entry.prompt)
    answer = None
    if isinstance(entry.context, HaystackContext):
        spec = entry.context.haystack
        left = room - count_tokens(entry.prompt) - TEMPLATE_ROOM
        context = build_haystack(spec, count_tokens, room=left)
        answer = spec.answer
    else:
        context = read_context(entry.context, folder=folder)
    context = context[: entry.max_length]
    if instruct:
        return Prompt(f"```{context}```\n\n{entry.prompt}", answer)
    return Prompt(context, answer)


def _with_images(entry: PromptEntry, folder: Path) -> Prompt:
    """Images come first, unless the prompt itself says where."""
    if entry.context is not None:
        raise ValueError("a prompt has a context or images, not both: ask twice")
    given = entry.image if isinstance(entry.image, list) else [entry.image]
    images: list[Any] = []
    for image in given:
        beside = folder / image if isinstance(image, str) else None
        images.append(str(beside) if beside and is_there(beside) else image)
    where = "" if IMAGE_WORD in entry.prompt else IMAGE_WORD * len(images)
    return Prompt(where + entry.prompt, images=tuple(images))


def read_context(source: str, *, folder: Path) -> str:
    """Text behind a URL or in a file (relative to the prompts file, else to here)."""
    if "://" in source:
        return download(source)
    for path in (folder / source, Path(source)):
        if is_there(path):
            return read_text(path, limit=MAX_CONTEXT_BYTES)
    raise ValueError(
        f"context {shown(source)} is no file in {folder} or here: "
        'give a file, an http(s) URL, or {"haystack": {...}}; a text itself belongs into "prompt"'
    )


def download(url: str, *, cache: Path = CONTEXT_CACHE) -> str:
    """Text behind a URL, from the cache after the first time; only a whole one is kept."""
    if not url.startswith(_SCHEMES):
        raise ValueError(f"context URL {shown(url)}: only http and https are read")
    kept = cache / (hashlib.sha256(url.encode(errors="replace")).hexdigest()[:32] + ".txt")
    if is_there(kept):
        return read_text(kept, limit=4 * MAX_CONTEXT_BYTES)
    text = _fetch(url).decode("utf-8", errors="replace")
    try:
        write_whole(kept, text)
    except OSError as error:
        logger.warning(f"the context of {url} cannot be kept in {cache}: {error.strerror or error}")
    return text


def _fetch(url: str) -> bytes:
    """The whole body in DOWNLOAD_SECONDS all in all, however slowly its bytes arrive."""
    found: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            found.put(_read_whole(url))
        except Exception as error:  # malformed replies have errors of many classes
            found.put(error)

    # a server that sends a byte now and then meets no socket's timeout, so a thread is given up
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = found.get(timeout=DOWNLOAD_SECONDS)
    except queue.Empty:
        answer = TimeoutError(f"not complete after {DOWNLOAD_SECONDS:g} s")
    if isinstance(answer, bytes):
        return answer
    is_status = isinstance(answer, urllib.error.HTTPError)
    reason = answer if is_status else getattr(answer, "reason", answer)
    plain = shown(url, 200).strip("'")
    told = " ".join(str(reason).split())[:200] or type(answer).__name__
    raise ValueError(
        f"cannot download context URL {plain}: {told}; give a file instead, or try again"
    )


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirects lead to http and https, nowhere else."""

    def redirect_request(self, request: Any, *rest: Any) -> urllib.request.Request | None:
        target = rest[-1]
        if not target.startswith(_SCHEMES):
            raise urllib.error.URLError(f"it redirects to {shown(target)}, which is not read")
        return super().redirect_request(request, *rest)


def _read_whole(url: str) -> bytes:
    body = bytearray()
    opener = urllib.request.build_opener(_WebOnly)
    with opener.open(url, timeout=DOWNLOAD_SECONDS) as response:
        while part := response.read1(2**16):
            body += part
            if len(body) > MAX_CONTEXT_BYTES:
                raise ValueError(f"larger than {MAX_CONTEXT_BYTES // 2**20} MiB")
        promised = response.headers.get("Content-Length")
    if promised is not None and not response.chunked and promised.strip() != str(len(body)):
        raise ValueError(f"{len(body)} bytes came where {promised.strip()[:20]} were promised")
    return bytes(body)


def for_users(prompts: list[Prompt], num_users: int, *, shift: int = 0) -> list[Prompt]:
    """One prompt per user: the list repeats to reach the batch, which is rotated by `shift`."""
    return [prompts[(user + shift) % num_users % len(prompts)] for user in range(num_users)]

"""Prompt sets: JSON entries {prompt, context?, max_length?} read, checked and turned into text.

A context is a URL (downloaded once, kept), a file, or {"haystack": {...}} (runtime/haystack.py).
Tokens are runtime/tokenizer.py's business; only lengths are asked for here.
"""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from runtime.haystack import Haystack, build_haystack

CONTEXT_CACHE = Path("generated/context_cache")
MAX_CONTEXT_BYTES = 16 * 2**20
DOWNLOAD_SECONDS = 30.0
IMAGE_WORD = "<|image|>"  # what stands for an image in a prompt's text
TEMPLATE_ROOM = 128  # tokens kept free around a generated context for the chat template


class HaystackContext(BaseModel):
    """A context that is generated rather than read."""

    model_config = ConfigDict(extra="forbid")

    haystack: Haystack


class DrawnImage(BaseModel):
    """An image that is drawn from a seed rather than read: width and height in pixels."""

    model_config = ConfigDict(extra="forbid")

    random: tuple[int, int]
    seed: int = 0


class PromptEntry(BaseModel):
    """One entry of a prompts file; `max_length` counts characters of the context.

    An image is a file, relative to the prompts file or to here, or drawn; several are a list.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    image: str | DrawnImage | list[str | DrawnImage] | None = None
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
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read prompts file {path}: {error.strerror}") from None
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
        if isinstance(image, DrawnImage):
            images.append({"random": list(image.random), "seed": image.seed})
        else:
            beside = folder / str(image)
            images.append(str(beside if beside.is_file() else image))
    where = "" if IMAGE_WORD in entry.prompt else IMAGE_WORD * len(images)
    return Prompt(where + entry.prompt, images=tuple(images))


def read_context(source: str, *, folder: Path) -> str:
    """Text behind a URL or in a file (relative to the prompts file, else to here)."""
    if "://" in source:
        return download(source)
    for path in (folder / source, Path(source)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ValueError(
        f"context {source!r} is no file in {folder} or here: "
        'give a file, an http(s) URL, or {"haystack": {...}}'
    )


def download(url: str, *, cache: Path = CONTEXT_CACHE) -> str:
    """Text behind a URL, from the cache after the first time."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"context URL {url!r}: only http and https are read")
    kept = cache / (hashlib.sha256(url.encode()).hexdigest()[:32] + ".txt")
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    body = _fetch(url)
    cache.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    text = body.decode("utf-8", errors="replace")
    partial.write_text(text, encoding="utf-8")
    partial.replace(kept)
    return text


def _fetch(url: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    body = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
            while part := response.read1(2**16):
                body += part
                if len(body) > MAX_CONTEXT_BYTES:
                    raise ValueError(
                        f"context URL {url} is larger than {MAX_CONTEXT_BYTES // 2**20} MiB: "
                        "download it, cut it and give the file"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS:g} s")
    except (urllib.error.URLError, OSError) as error:
        is_status = isinstance(error, urllib.error.HTTPError)
        reason = error if is_status else getattr(error, "reason", error)
        raise ValueError(
            f"cannot download context URL {url}: {reason}; give a file instead, or try again"
        ) from None
    return bytes(body)


def for_users(prompts: list[Prompt], num_users: int, *, shift: int = 0) -> list[Prompt]:
    """One prompt per user: the list repeats to reach the batch, which is rotated by `shift`."""
    return [prompts[(user + shift) % num_users % len(prompts)] for user in range(num_users)]

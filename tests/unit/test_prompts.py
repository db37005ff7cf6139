"""Prompt files become text: contexts are kept and bounded, and defects are one clear line."""

import contextlib
import http.server
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import prompts
from runtime.haystack import Haystack, build_haystack
from runtime.prompts import Prompt, download, for_users, load_prompts

NEEDLE = {"needle": "The code of the vault is 4417.", "answer": "4417"}


def write(folder: Path, content: object) -> Path:
    path = folder / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def words(text: str) -> int:
    return len(text.split())


def test_a_prompt_alone_is_its_own_text(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "Why is the sky blue?"}])
    assert load_prompts(path, instruct=True) == [Prompt("Why is the sky blue?")]


def test_a_context_comes_first_in_backticks_for_instruct_and_alone_otherwise(
    tmp_path: Path,
) -> None:
    (tmp_path / "story.txt").write_text("Once upon a time")
    path = write(tmp_path, [{"prompt": "Go on.", "context": "story.txt", "max_length": 4}])
    assert load_prompts(path, instruct=True)[0].text == "```Once```\n\nGo on."
    assert load_prompts(path, instruct=False)[0].text == "Once"


def test_a_haystack_is_deterministic_bounded_and_holds_its_needle() -> None:
    spec = Haystack(tokens=2000, depth=0.25, seed=5, **NEEDLE)
    text = build_haystack(spec, words, room=10**6)
    assert text == build_haystack(spec, words, room=10**6)
    assert text != build_haystack(spec.model_copy(update={"seed": 6}), words, room=10**6)
    assert 1950 <= words(text) <= 2000
    assert text.count(spec.needle) == 1
    assert 0.2 < text.index(spec.needle) / len(text) < 0.3
    assert 450 <= words(build_haystack(spec, words, room=500)) <= 500


def test_a_generated_context_fits_the_room_that_is_left(tmp_path: Path) -> None:
    context = {"haystack": {"tokens": 5000, **NEEDLE}}
    path = write(tmp_path, [{"prompt": "What is the code?", "context": context}])
    (prompt,) = load_prompts(path, instruct=True, count_tokens=words, room=1000)
    assert words(prompt.text) <= 1000
    assert prompt.answer == "4417"
    assert NEEDLE["needle"] in prompt.text


def test_prompts_repeat_to_reach_the_batch_and_rotate_by_user() -> None:
    a, b, c = (Prompt(text) for text in "abc")
    assert for_users([a, b, c], 5) == [a, b, c, a, b]
    assert for_users([a, b, c], 3, shift=1) == [b, c, a]
    assert for_users([a, b, c], 2, shift=1) == [b, a]
    assert for_users([a, b, c], 1, shift=1) == [a]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "Invalid JSON"),
        ("[{]", "Invalid JSON"),
        ("[]", "no entries"),
        ({"prompt": "x"}, "valid array"),
        ([{"promt": "x"}], "0.prompt: Field required"),
        ([{"prompt": ""}], "0.prompt"),
        ([{"prompt": "x", "max_length": 0}], "0.max_length"),
        ([{"prompt": "x"}, {"prompt": "x", "contxt": "y"}], "1.contxt"),
        ([{"prompt": "x", "context": "nowhere.txt"}], "nowhere.txt"),
        ([{"prompt": "x", "context": "ftp://example.com/a"}], "only http and https"),
    ],
)
def test_a_defective_file_is_one_line_that_names_the_defect(
    tmp_path: Path, content: object, found: str
) -> None:
    with pytest.raises(ValueError) as error:
        load_prompts(write(tmp_path, content), instruct=True)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match="cannot read nowhere.json"):
        load_prompts(Path("nowhere.json"), instruct=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves /text, /large (endless) and 404 for the rest; counts requests."""

    requests = 0

    def do_GET(self) -> None:
        Handler.requests += 1
        self.send_response(200 if self.path in ("/text", "/large") else 404)
        self.end_headers()
        if self.path == "/text":
            self.wfile.write(b"served")
        if self.path == "/large":
            for _ in range(prompts.MAX_CONTEXT_BYTES // 2**20 + 1):
                self.wfile.write(bytes(2**20))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_is_fetched_once_and_kept(server: str, tmp_path: Path) -> None:
    assert [download(f"{server}/text", cache=tmp_path) for _ in range(2)] == ["served"] * 2
    assert Handler.requests == 1


@pytest.mark.parametrize(("page", "found"), [("missing", "404"), ("large", "larger than 2 MiB")])
def test_a_failed_download_is_one_line_and_leaves_no_file(
    server: str, tmp_path: Path, page: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_CONTEXT_BYTES", 2 * 2**20)
    with pytest.raises(ValueError, match=found):
        download(f"{server}/{page}", cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_url_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot download context URL http://127.0.0.1:9/x"):
        download("http://127.0.0.1:9/x", cache=tmp_path)


class RawServer(socketserver.ThreadingTCPServer):
    """Sends the bytes of `reply`, one piece after `pause` seconds after the other."""

    allow_reuse_address = daemon_threads = True
    reply: tuple[bytes, ...] = ()
    pause = 0.0


class RawHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(4096)
        with contextlib.suppress(OSError):
            for piece in self.server.reply:  # type: ignore[attr-defined]
                self.request.sendall(piece)
                time.sleep(self.server.pause)  # type: ignore[attr-defined]


@pytest.fixture
def raw() -> Iterator[RawServer]:
    with RawServer(("127.0.0.1", 0), RawHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


OK = b"HTTP/1.1 200 OK\r\n"
REPLIES = {
    "cut short": (OK + b"Content-Length: 1000\r\n\r\nhello", "5 bytes came where 1000 were"),
    "odd length": (OK + b"Content-Length: many\r\n\r\nhello", "5 bytes came where many were"),
    "chunk cut short": (OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\nhello", "."),
    "no chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", "."),
    "nothing": (b"", "."),
    "no HTTP": (b"\x00\x01\x02 what\r\n\r\n", "."),
    "no status": (b"HTTP/1.1 abc\r\n\r\n", "."),
    "long header": (OK + b"X: " + b"y" * 70000 + b"\r\n\r\n", "."),
    "many headers": (OK + b"X: y\r\n" * 500 + b"\r\n", "."),
    "redirect loop": (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "."),
    "redirect to a file": (b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n", "."),
    "redirect to ftp": (b"HTTP/1.1 302 F\r\nLocation: ftp://h/x\r\n\r\n", "which is not read"),
    "redirect to junk": (b"HTTP/1.1 302 F\r\nLocation: http://[::\r\n\r\n", "."),
    "redirect to nowhere": (b"HTTP/1.1 302 Found\r\n\r\n", "."),
    "error": (b"HTTP/1.1 500 a\x00b\r\nContent-Length: 0\r\n\r\n", "500"),
}


@pytest.mark.parametrize("kind", REPLIES)
def test_a_malformed_reply_is_one_line_and_never_kept(
    raw: RawServer, tmp_path: Path, kind: str
) -> None:
    reply, found = REPLIES[kind]
    raw.reply = (reply,)
    with pytest.raises(ValueError, match=f"cannot download context URL http.*{found}") as error:
        download(f"http://127.0.0.1:{raw.server_address[1]}/x", cache=tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", [b"", OK, OK + b"Content-Length: 999\r\n\r\n"])
def test_a_dripping_reply_ends_at_the_deadline_of_the_whole_download(
    raw: RawServer, tmp_path: Path, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "DOWNLOAD_SECONDS", 0.5)
    raw.reply, raw.pause = (head, *[b"x"] * 40), 0.1
    start = time.monotonic()
    with pytest.raises(ValueError, match="not complete after 0.5 s"):
        download(f"http://127.0.0.1:{raw.server_address[1]}/x", cache=tmp_path)
    assert time.monotonic() - start < 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1", "http://a b/", "http://h:port/", "http://\u2603.\x00/", "http:///x"]
    + ["https://" + "x" * 999, "http://h\nX: y/", "file:///etc/passwd", "HTTP://x/"],
)
def test_an_odd_url_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context URL") as error:
        download(url, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_a_context_that_cannot_be_kept_is_used_all_the_same(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert download(f"{server}/text", cache=tmp_path / "file" / "cache") == "served"


@pytest.mark.parametrize("kind", ["text", "long", "binary", "folder", "memory", "pipe", "nul"])
def test_a_context_that_is_no_text_file_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "pipe")
    context = {
        "text": "a text that somebody put here " * 3,
        "long": "x" * 5000,
        "folder": ".",
        "memory": "/proc/self/mem",
        "nul": "a\0b",
    }.get(kind, kind)
    with pytest.raises(ValueError) as error:
        load_prompts(write(tmp_path, [{"prompt": "x", "context": context}]), instruct=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500

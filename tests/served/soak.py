"""Random requests against a server for as long as one likes, and what is left behind.

    python -m tests.served.soak --seconds 1800

Streams that are read to their end, streams that are left, requests that must be refused. Questions
are asked again and again, so an answer with another user's words shows. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import openai

from tests.served.server import Server, start

QUESTIONS = [f"Write a sentence about the number {number}." for number in range(40)]
TOKENS = (8, 24, 64)
THREADS, USERS, CONTEXT = 40, 32, 512  # some always wait
LOOKS = 12


@dataclass
class Soaked:
    """What happened, and what stayed."""

    seconds: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)  # by what became of them
    errors: list[str] = field(default_factory=list)
    memory_mib: list[tuple[float, dict[str, float]]] = field(default_factory=list)  # at seconds
    pages_in_use: float = 0.0  # of 1
    running: float = 0.0


def memory_mib(process: int) -> float:
    """Its own and its share of what others have, too."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss line")


class Soak:
    """Threads that ask until time is up."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.until = server, time.monotonic() + seconds
        self.known: dict[tuple[str, int], str] = {}
        self.lock = threading.Lock()
        self.found = Soaked()

    def note(self, what: str) -> None:
        with self.lock:
            self.found.requests[what] = self.found.requests.get(what, 0) + 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.found.errors.append(what[:300])

    def worker(self, seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                self.one(draw)
            except Exception as error:  # a thread that dies would only make the soak lighter
                self.fail(f"{type(error).__name__}: {error}")

    def one(self, draw: random.Random) -> None:
        """One request of some kind."""
        question, tokens, kind = draw.choice(QUESTIONS), draw.choice(TOKENS), draw.random()
        if kind < 0.05:
            self.refused(draw)
        elif kind < 0.2:
            stream = self.server.ask(question, stream=True, max_tokens=300)
            for _ in zip(range(draw.randint(1, 40)), stream, strict=False):
                pass
            stream.close()
            self.note("left")
        elif kind < 0.4:
            answer = self.server.ask(question, temperature=1.0, max_tokens=tokens, top_p=0.9)
            assert answer.usage.completion_tokens <= tokens
            self.note("drawn")
        else:
            self.compared(question, tokens)

    def compared(self, question: str, tokens: int) -> None:
        """Greedy, so the same whenever it is asked."""
        events = self.server.ask(question, stream=True, max_tokens=tokens)
        text = "".join(event.choices[0].delta.content or "" for event in events)
        with self.lock:
            first = self.known.setdefault((question, tokens), text)
        if text != first:
            self.fail(f"{question!r} was answered {first!r}, then {text!r}")
        self.note("compared")

    def refused(self, draw: random.Random) -> None:
        wrong = [{"temperature": -1.0}, {"max_tokens": 10 * CONTEXT}, {"model": "unknown"}]
        try:
            self.server.ask(QUESTIONS[0], **draw.choice(wrong))
        except (openai.BadRequestError, openai.NotFoundError):
            self.note("refused")
        else:
            self.fail("a wrong request was answered")


def soak(server: Server, seconds: float) -> Soaked:
    """Ask for so long, with every kind of request, and look at the memory meanwhile."""
    run = Soak(server, seconds)
    found, begin = run.found, time.monotonic()
    processes = {"server": server.process.pid, "engine": server.engine}

    def look() -> None:
        sizes = {name: round(memory_mib(process), 1) for name, process in processes.items()}
        found.memory_mib.append((round(time.monotonic() - begin, 1), sizes))

    threads = [threading.Thread(target=run.worker, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(LOOKS):
        time.sleep(seconds / LOOKS)
        look()
    for thread in threads:
        thread.join()
    server.wait_until("vllm:num_requests_running", 0)
    server.wait_until("vllm:kv_cache_usage_perc", 0)
    look()
    found.seconds = round(time.monotonic() - begin, 1)
    found.running = server.metric("vllm:num_requests_running")
    found.pages_in_use = server.metric("vllm:kv_cache_usage_perc")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    given = parser.parse_args()
    log = Path(tempfile.mkdtemp(prefix="soak-")) / "server.log"
    server = start(log, users=USERS, context=CONTEXT)
    try:
        found = soak(server, given.seconds)
        print(json.dumps(asdict(found)), flush=True)
    finally:
        server.process.terminate()
        print(json.dumps({"exit": server.process.wait(timeout=120), "log": str(log)}))


if __name__ == "__main__":
    main()

"""How long a hub may take: a transfer that drips is given up, and a server that asks for patience gets some.

huggingface_hub waits for the next byte only so long, but for the last one as long as bytes come; and it sleeps for
whatever time a server names. Hooks on its HTTP client, which act in the threads that fetch for us alone, see both.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from zoo.errors import SourceError

__all__ = ["PATIENCE", "SLOWEST", "RateLimited", "TooSlow", "at_a_pace"]

PATIENCE = 20.0
"""Seconds in which a transfer must show that it gets on."""

SLOWEST = 1000
"""Bytes a second, below which it does not."""

LONGEST = 60.0
"""Seconds that a server may ask to wait."""

_TRIES = 3

T = TypeVar("T")
_here = threading.local()


class TooSlow(OSError):
    """Bytes come, but so slowly that nobody waits for the rest."""


class RateLimited(OSError):
    """The server asks for fewer requests, and to wait longer than one does."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("HTTP 429" + ("" if seconds is None else f", Retry-After {seconds:g} seconds"))
        self.seconds = seconds


def at_a_pace(calls: list[Callable[[], T]], workers: int, where: str) -> list[T]:
    """What the calls return, made by so many threads; the first error of one ends all.

    Raises:
        SourceError: an answer takes for ever.
    """
    states = [_State() for _ in calls]
    pool = ThreadPoolExecutor(workers)
    running: list[Future[T]] = [pool.submit(_paced, call, state) for call, state in zip(calls, states, strict=True)]
    try:
        left = set(running)
        while left:
            done, left = wait(left, 0.5, "FIRST_EXCEPTION")
            for future in done:
                future.result()
            if any(state.overdue() for state in states):
                from huggingface_hub import close_session

                close_session()  # which ends the threads that wait for it
                raise TooSlow(f"{where}: no answer within {2 * PATIENCE:g} seconds, though bytes of it came")
        return [future.result() for future in running]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _State:
    """Of one thread: since when it waits for the head of an answer."""

    def __init__(self) -> None:
        self.asked: float | None = None

    def overdue(self) -> bool:
        return (asked := self.asked) is not None and time.monotonic() - asked > 2 * PATIENCE


def _paced(call: Callable[[], T], state: _State) -> T:
    _install()
    _here.state = state
    try:
        for left in reversed(range(_TRIES)):
            try:
                return call()
            except Exception as error:
                seconds = retry_after(getattr(error, "response", None))
                if seconds is None or seconds > LONGEST or not left:
                    raise
                time.sleep(seconds)
        raise SourceError("unreachable")
    finally:
        state.asked = _here.state = None


def retry_after(response: Any) -> float | None:
    """The seconds that a refused request names, if it does."""
    if getattr(response, "status_code", None) != 429:
        return None
    text = str(response.headers.get("Retry-After", "")).strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _install() -> None:
    """Put the hooks on huggingface_hub's client, which may be a new one."""
    from huggingface_hub import get_session

    client = get_session()
    hooks = {name: list(found) for name, found in client.event_hooks.items()}
    if _asked not in hooks["request"]:
        hooks["request"].append(_asked)
        hooks["response"].append(_answered)
        client.event_hooks = hooks


def _asked(_: Any) -> None:
    if (state := getattr(_here, "state", None)) is not None:
        state.asked = time.monotonic()


def _answered(response: Any) -> None:
    state = getattr(_here, "state", None)
    if state is None:
        return
    state.asked = None
    if (seconds := retry_after(response)) is not None and seconds > LONGEST:
        raise RateLimited(seconds)
    response.stream = _paced_stream(response.stream)


def _paced_stream(stream: Any) -> Any:
    class Paced(type(stream)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen: deque[tuple[float, int]] = deque()

        def __iter__(self) -> Iterator[bytes]:
            total, begun = 0, time.monotonic()
            self.seen.append((begun, 0))
            for part in stream:
                total += len(part)
                now = time.monotonic()
                self.seen.append((now, total))
                while len(self.seen) > 2 and now - self.seen[1][0] >= PATIENCE:
                    self.seen.popleft()
                since, before = self.seen[0]
                if now - since >= PATIENCE and total - before < SLOWEST * (now - since):
                    raise TooSlow(f"{total - before} bytes in {now - since:.0f} seconds")
                yield part

        def close(self) -> None:
            stream.close()

    return Paced()

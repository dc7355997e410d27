"""What comes over a network must come at a pace: a few bytes now and then would hold whoever waits for the rest."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, ProtocolError

from fer_ray.errors import SlowError, TooLargeError

SECONDS = 30.0  # that any file may take
BYTES_PER_SECOND = 64 << 10  # the least pace beyond that: of sixteen at a time, on a line of 8 Mbit/s
MANY = 8  # that were too slow within MANY_SECONDS: then others get SECONDS_AMONG_MANY at first
MANY_SECONDS = 600.0
SECONDS_AMONG_MANY = 5.0
_CHUNK_BYTES = 256 << 10
_slow_at: deque[float] = deque(maxlen=MANY)  # when the last ones were given up, in this process


def collect(uri: str, chunks: Iterable[bytes], limit: float) -> bytes:
    """The chunks as one, as they come from a network.

    Args:
        uri: Where they come from.
        chunks: What this raises is passed on, unless it comes too late.
        limit: How many bytes may be held.

    Raises:
        SlowError: they come more slowly than SECONDS and BYTES_PER_SECOND allow.
        TooLargeError: there are more than `limit` bytes.
    """
    started, size, received = time.monotonic(), 0, []
    are_many = len(_slow_at) == MANY and started - _slow_at[0] < MANY_SECONDS
    patience = SECONDS_AMONG_MANY if are_many else SECONDS

    def check() -> None:
        now = time.monotonic()
        if now - started >= patience + size / BYTES_PER_SECOND:
            _slow_at.append(now)
            raise SlowError(uri, size, now - started)

    try:
        for chunk in chunks:
            received.append(chunk)
            size += len(chunk)
            if size > limit:
                break
            check()
    except Exception:
        check()
        raise
    if size > limit:
        raise TooLargeError(size)
    return b"".join(received)


def chunks_of(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body of an answer, as it comes."""
    try:
        while chunk := answer.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk
    except ProtocolError as error:
        broken_off = error.args[-1]  # which has a better name
        raise broken_off if isinstance(broken_off, HTTPError) else error from None


class _EndsSlowHeads:
    """For connections: one is ended where the head of an answer has not come in time; timeouts of sockets are for single bytes."""

    def getresponse(self) -> Any:
        started, giving_up = time.monotonic(), threading.Timer(SECONDS, self.sock.shutdown, [socket.SHUT_RDWR])  # type: ignore[attr-defined]
        giving_up.daemon = True
        giving_up.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        except (HTTPException, OSError) as error:
            if time.monotonic() - started >= SECONDS:
                raise TimeoutError("no whole head in time") from error
            raise
        finally:
            giving_up.cancel()


def end_slow_heads(pools: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """The same pools of connections of urllib3, by scheme; what takes too long before its body is a timeout there."""

    def ending(pool: type[Any]) -> type[Any]:
        return type(pool.__name__, (pool,), {"ConnectionCls": type(pool.ConnectionCls.__name__, (_EndsSlowHeads, pool.ConnectionCls), {})})

    return {scheme: ending(pool) for scheme, pool in pools.items()}

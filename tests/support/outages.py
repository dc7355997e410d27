"""A way to a store that plays its outages: each fault of them for as long as a test wants, for some answers or all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from stores import FaultyProxy
from yarl import URL

PAGE = b"<html><head><title>Sign in</title></head><body>This network wants you to sign in.</body></html>"
FAULTS = ("503", "denied", "reset", "broken off", "cut short", "page", "other object", "slow")


class OutageProxy(FaultyProxy):
    """Hands requests on until `begin` names a fault; then every answer to a request that matches has it, until `end`.

    503: the store is overloaded. denied: AccessDenied. reset: the connection ends without an answer. broken off: the body ends in
    its middle. cut short: so does it, and the length says that this is all. page: a gateway's page, with status 200. other object:
    what a cache mixed up, as long as what was asked for. slow: an answer that takes seconds, byte for byte. refused: nobody listens.
    """

    fault = ""
    matching = ""
    after = 0
    until = 0.0
    answered = 0
    following: Sequence[dict[str, Any]] = ()

    def begin(
        self, fault: str, seconds: float, matching: str = "^GET /[^?]*$", after: int = 0, following: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Let answers go wrong for so long, once `after` more were right; then as `following` says."""
        self.following = following
        self.fault, self.matching, self.after, self.seconds, self.until = fault, matching, self.answered + after, seconds, 0.0

    def end(self) -> None:
        self.fault = ""

    async def _hand_on(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault_of(request)
        if not fault:
            return await super()._hand_on(request)
        self.faults[fault] += 1
        if fault == "503":
            return self._error(503, "SlowDown")
        if fault == "denied":
            return self._error(403, "AccessDenied")
        if fault == "reset":
            return self._abort(request)
        if fault == "refused":
            if self.faults[fault] == 1:
                self._refusing = asyncio.create_task(self._refuse(self.seconds))
            return self._abort(request)
        if fault == "page":
            return web.Response(body=PAGE, content_type="text/html")
        return await self._hand_on_wrong(request, fault)

    def _fault_of(self, request: web.Request) -> str:
        if not re.search(self.matching, f"{request.method} {request.raw_path}"):
            return ""
        self.answered += 1
        if not self.fault or self.answered <= self.after:
            return ""
        now = asyncio.get_running_loop().time()
        self.until = self.until or now + self.seconds
        if now >= self.until and self.following:
            self.begin(**self.following[0], following=self.following[1:])
        return self.fault if now < self.until else ""

    async def _refuse(self, seconds: float) -> None:
        """Do not listen for so long."""
        await self._listener.stop()
        await asyncio.sleep(seconds)
        self._listener = web.TCPSite(self._runner, "127.0.0.1", int(self.endpoint.rpartition(":")[2]))
        await self._listener.start()

    def _abort(self, request: web.Request) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response()

    async def _hand_on_wrong(self, request: web.Request, fault: str) -> web.StreamResponse:
        url = URL(self.target + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, headers=request.headers, allow_redirects=False) as answer:
            content = await answer.read()
            headers = {name: value for name, value in answer.headers.items() if name in ("ETag", "Last-Modified", "Content-Range")}
            half = content[: len(content) // 2]
            if fault in ("cut short", "other object"):
                if fault == "other object":
                    headers["ETag"] = '"other"'
                return web.Response(status=answer.status, body=half if fault == "cut short" else bytes(len(content)), headers=headers)
            response = web.StreamResponse(status=answer.status, headers=headers | {"Content-Length": str(len(content))})
            await response.prepare(request)
            if fault == "slow":
                for start in range(0, len(content), max(1, len(content) // 20)):
                    await response.write(content[start : start + max(1, len(content) // 20)])
                    await asyncio.sleep(0.1)
                return response
            await response.write(half)
            return self._abort(request)

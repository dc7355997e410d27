"""A web server on loopback whose answers a test decides, and what it was asked."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MODIFIED = "Fri, 20 Nov 2026 12:30:00 GMT"


@dataclass
class Answer:
    """What comes for a path; a `length` that is not the body's cuts it short."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    chunked: bool = False
    parts: bool = True  # whether Range is heeded


@dataclass
class Asked:
    method: str
    path: str
    headers: Message


class WebServer:
    """Answers by path, with the query; a list of answers is used up until its last."""

    def __init__(self, answers: dict[str, Answer | list[Answer]], certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        give = self._give

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                give(self)

            def do_HEAD(self) -> None:
                give(self)

            def log_message(self, *_: object) -> None:
                pass

        self.answers = answers
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _give(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(Asked(request.command, request.path, request.headers))
        planned = self.answers.get(request.path, Answer(b"nothing here", 404))
        answer = planned if isinstance(planned, Answer) else planned.pop(0) if len(planned) > 1 else planned[0]
        body, status = answer.body, answer.status
        wanted = request.headers.get("Range")
        if wanted and answer.parts and status == 200:
            first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
            body, status = body[first : last + 1], 206
        request.send_response(status)
        for name, text in answer.headers.items():
            request.send_header(name, text)
        if answer.chunked:
            request.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            request.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
        if answer.length is not None:
            request.close_connection = True
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def make_certificate(folder: Path) -> Path:
    """A certificate and its key for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    file = folder / "certificate.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + secret)
    return file

"""Files behind http:// and https:// addresses, read through urllib3.

Not through obstore: its HTTPStore needs a client of its own for every address with a query, refuses answers that do not
announce their length, and follows every redirect.
"""

from __future__ import annotations

import email.utils
import functools
import io
import itertools
import random
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.util import Timeout

from fer_ray.errors import AccessError, ChangedError, OutageError, TooLargeError, UsageError
from fer_ray.io.pace import chunks_of, collect, end_slow_heads
from fer_ray.io.ranged import RangedFile
from fer_ray.schema import ImageEntry

SCHEMES = ("https://", "http://")
CONNECT_SECONDS = 10
READ_SECONDS = 30
ATTEMPTS = 5  # to read a file, with waits of 4 to 8 s together; a list of many servers names dead ones, so no longer
SECONDS_BEFORE_RETRY = 0.5  # doubled each time
MAX_REDIRECTS = 5
MAX_WHOLE_FILE = 256 << 20  # bytes of a tar or list that can only be read at once
_ARCHIVES = (".tar", ".zip")  # what follows a `#` behind these is the name of a file inside
SERVERS = 64  # that connections are kept to
CONNECTIONS = 32  # to one of them

_OVERLOADED = (429, 500, 502, 503, 504)
_MISSING = (404, 410)
_NO_HEAD = (405, 501)
# Names in a query that sign an address or let in who has it, and what comes with them.
_SECRET = re.compile(
    r"x-(amz|goog|oss|cos|obs|ms)-.*|sig|sign|signature|sas|jwt|hdn(ea|ts)|(.*[-_])?token(__)?|accesstoken|auth(orization)?|api[-_]?key|"
    r"awsaccesskeyid|googleaccessid|key-pair-id|(client[-_]?)?secret|passw(or)?d"
)
_BESIDE_A_SIGNATURE = re.compile("expires|policy|s[veptri]|spr|sip|ss|srt|sk(oid|tid|t|e|s|v)|sdd|s[au]oid|scid")


Answered = TypeVar("Answered")


class _OverloadedError(Exception):
    """The server asks for another try."""


class WebStore:
    """Single files; a server has no listing. Only http and https are spoken, and https is never left for http."""

    def __init__(self, signed: Mapping[str, str] | None = None) -> None:
        """Take what is asked for, with its signature, by the address without it."""
        self._signed = signed or {}

    def list_files(self, folder: str, excluded: str | None) -> Iterator[ImageEntry]:
        """Nothing: servers do not list."""
        return iter(())

    def stat(self, uri: str) -> ImageEntry | None:
        """The file without its contents, as far as the server says; None where there is none."""
        if "#" in uri:  # never sent to a server: it names what is inside of an archive
            return None
        asked = self._signed.get(uri, uri)
        answer = None if uri in self._signed else _with_retries(uri, lambda: _look("HEAD", uri))  # a signature is for GET alone
        if answer is None or answer.status in _NO_HEAD:
            answer = _with_retries(uri, lambda: _look("GET", asked))
        if answer.status in _MISSING:
            return None
        _check_status(answer, uri)
        size = answer.headers.get("Content-Length", "")
        etag = answer.headers.get("ETag", "")
        return ImageEntry(uri, int(size) if size.isdecimal() else None, _time(answer.headers.get("Last-Modified")), etag.strip('"') or None)

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """The file, or `length` bytes of it from `start`; with `etag`, only as long as it still has that one.

        Raises:
            FileNotFoundError: there is no such file.
            TooLargeError: more than `limit` bytes would have to be read; not many more were.
            AccessError: it cannot be read.
        """
        if length == 0:
            return b""
        headers = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        if etag and length is not None and not etag.startswith("W/"):  # a weak one does not tell that the bytes are the same
            headers["If-Match"] = f'"{etag}"'
        asked = self._signed.get(uri, uri)
        return _with_retries(uri, lambda: _body(_ask("GET", asked, headers), uri, limit, length, etag))

    def open(self, uri: str, read_ahead: int) -> io.BufferedReader:
        """The file, read by ranges of at least `read_ahead` bytes; whole where it is smaller or the server sends no ranges.

        Raises:
            TooLargeError: it is larger than MAX_WHOLE_FILE and cannot be read by ranges.
        """
        found = self.stat(uri)
        if found is None:
            raise FileNotFoundError(uri)
        size, asked = found.size_bytes, self._signed.get(uri, uri)
        if size is not None and size > read_ahead and _with_retries(uri, lambda: _look("GET", asked, {"Range": "bytes=0-0"})).status == 206:
            return io.BufferedReader(RangedFile(lambda start, length: self.read(uri, length, start, length), size), read_ahead)
        content = self.read(uri, MAX_WHOLE_FILE)
        return io.BufferedReader(RangedFile(lambda start, length: content[start : start + length], len(content)), read_ahead)


def check_address(uri: str) -> str:
    """The address as it stands.

    Raises:
        UsageError: it names no server, or holds what must not stand in tables; it is not shown.
    """
    parts = urllib.parse.urlsplit(uri)
    if not parts.hostname or "@" in parts.netloc:
        raise UsageError("A web address names no server, or holds a password: write https://server/path, and no credentials in it.")
    if without_secret(uri) != uri:
        raise UsageError(
            f"An address at {parts.hostname} holds a signature or token, which would be written down: "
            "name the bucket (s3://, gs://, az://) and give credentials, or copy the files."
        )
    return uri


def without_secret(uri: str) -> str:
    """The address of a file without what signs it, which is another one every night; so two signatures of one file are one image.

    What follows a `#` is looked at too: a token that some sign-ins leave there, a query behind a name inside an archive.
    """
    address, mark, fragment = uri.partition("#")
    path, question, query = address.partition("?")
    name, again, inner = fragment.partition("?")
    name = name if path.lower().endswith(_ARCHIVES) else _unsigned("", name)
    return path + _unsigned(question, query) + (mark + name if name else "") + _unsigned(again, inner)


def _unsigned(mark: str, query: str) -> str:
    """The mark and the query, without what signs the address where something does."""
    parts = {part: urllib.parse.unquote(part.partition("=")[0]).strip().lower() for part in query.split("&")}
    if not any(map(_SECRET.fullmatch, parts.values())):
        return mark + query
    kept = [part for part, name in parts.items() if not _SECRET.fullmatch(name) and not _BESIDE_A_SIGNATURE.fullmatch(name)]
    return mark + "&".join(kept) if kept else ""


def _body(answer: urllib3.BaseHTTPResponse, uri: str, limit: float, length: int | None, etag: str | None) -> bytes:
    try:
        if answer.status in _MISSING:
            raise FileNotFoundError(uri)
        _check_status(answer, uri)
        ChangedError.check(uri, etag, answer.headers.get("ETag"))
        if length is not None and answer.status != 206:
            raise AccessError(f"{uri} cannot be read (the server sends no parts of files): copy it here.", "the server sends no parts")
        announced = answer.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise TooLargeError(int(announced))
        content = collect(uri, chunks_of(answer), limit)
        if announced.isdecimal() and len(content) < int(announced):
            raise IncompleteRead(len(content), int(announced) - len(content))
    except BaseException:  # an interrupt too: an answer that was not read whole must not go back to the pool
        answer.close()
        raise
    answer.release_conn()
    return content


def _with_retries(uri: str, work: Callable[[], Answered]) -> Answered:
    """What comes in the end; urllib3 would write addresses into the log, with whatever secret a redirect gave them."""
    started = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return work()
        except (HTTPError, _OverloadedError) as error:
            is_silent = time.monotonic() - started > READ_SECONDS / 2  # five tries would take minutes
            if attempt == ATTEMPTS or is_silent:
                reason = str(error) if isinstance(error, _OverloadedError) else type(error).__name__
                raise OutageError(f"{uri} cannot be read ({reason}): check the address and the network.", reason) from None
        time.sleep(random.uniform(0.5, 1) * SECONDS_BEFORE_RETRY * 2 ** (attempt - 1))
    raise AssertionError("the last try ends the loop")


def _look(method: str, uri: str, headers: Mapping[str, str] | None = None) -> urllib3.BaseHTTPResponse:
    """What the server says of a file, without the file."""
    answer = _ask(method, uri, headers or {})
    answer.close()
    return answer


def _ask(method: str, uri: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
    """The answer, before its body is read."""
    url = uri
    for _ in range(MAX_REDIRECTS + 1):
        answer = _pool(_proxy(url)).request(method, url, headers=dict(headers), redirect=False, retries=False, preload_content=False)
        if answer.status in _OVERLOADED:
            answer.close()
            raise _OverloadedError(f"status {answer.status}")
        target = answer.get_redirect_location()
        if not target:
            return answer
        answer.close()
        url, before = urllib.parse.urljoin(url, target), url
        if not url.startswith(SCHEMES) or (before.startswith("https:") and not url.startswith("https:")):
            raise AccessError(
                f"{without_secret(uri)} cannot be read (it is redirected to another scheme): check the address.",
                "redirected to another scheme",
            )
    raise AccessError(
        f"{without_secret(uri)} cannot be read (it is redirected again and again): check the address.", "redirected again and again"
    )


def _check_status(answer: urllib3.BaseHTTPResponse, uri: str) -> None:
    if answer.status == 412:
        raise ChangedError(uri)
    if answer.status not in (200, 206):
        reason = f"status {answer.status}"
        raise AccessError(f"{uri} cannot be read ({reason}): check the address and the server.", reason)


def _proxy(url: str) -> str | None:
    parts = urllib.parse.urlsplit(url)
    return None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)


@functools.lru_cache
def _pool(proxy: str | None) -> urllib3.PoolManager:
    """One a process, which threads share."""
    timeout, headers = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), {"User-Agent": "fer-ray", "Accept-Encoding": "identity"}
    if proxy is None:
        pool = urllib3.PoolManager(SERVERS, headers, timeout=timeout, maxsize=CONNECTIONS)
    else:
        login = urllib.parse.urlsplit(proxy)
        name = urllib.parse.unquote(f"{login.username}:{login.password}") if login.username else None
        asked = urllib3.make_headers(proxy_basic_auth=name)
        pool = urllib3.ProxyManager(proxy, SERVERS, headers, proxy_headers=asked, timeout=timeout, maxsize=CONNECTIONS)
    pool.pool_classes_by_scheme = end_slow_heads(pool.pool_classes_by_scheme)
    return pool


def _time(text: str | None) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(text) if text else None
    except ValueError:
        return None

"""Listings of S3 at a tenth of what boto3 takes for a key.

Not through obstore, which takes less still: it fails at keys with empty parts, `.` or `..`, and drops a slash at their ends
without a word. So a page is asked for with botocore's signature and taken apart here; any page that is not as expected is asked of
boto3 again, which also knows what to retry and what to say.
"""

from __future__ import annotations

import html
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import botocore.exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from fer_ray.errors import OutageError
from fer_ray.io.pace import end_slow_heads
from fer_ray.io.s3_client import CONNECT_SECONDS, READ_SECONDS, SCHEME, Connection
from fer_ray.schema import COLD_CLASSES

Listed = tuple[str, int, datetime, str | None, str | None]
"""Key, size, time and etag of an object, and its storage class where it must be restored before it can be read."""
Page = tuple[list[Listed], str | None]
"""Objects, and what the next page is asked for with."""

_CELLS = [re.compile(f"<{name}>([^<]*)</{name}>") for name in ("Key", "Size", "LastModified", "ETag")]
_NEXT = re.compile("<NextContinuationToken>([^<]*)</NextContinuationToken>")


def list_objects(connection: Connection, bucket: str, prefix: str) -> Iterator[Listed]:
    """Every object whose key begins with the prefix, in the order of the keys' bytes; a page of 1,000 is held at a time."""
    page, token = _ask_boto3(connection, bucket, prefix, None)  # first: it finds out where the bucket is
    pages = _FastPages(connection, bucket, prefix) if token else None
    while True:
        yield from page
        if not token or not pages:
            return
        page, token = pages.ask(token) or _ask_boto3(connection, bucket, prefix, token)


def _ask_boto3(connection: Connection, bucket: str, prefix: str, token: str | None) -> Page:
    following = {"ContinuationToken": token} if token else {}
    answer = connection.client.list_objects_v2(Bucket=bucket, Prefix=prefix, EncodingType="url", **following)
    decode = urllib.parse.unquote_plus if answer.get("EncodingType") == "url" else str
    if "IsTruncated" not in answer:  # every listing says so; a gateway's page does not, and must not pass for an empty bucket
        raise OutageError(f"{SCHEME}{bucket}/{prefix} cannot be listed (what answered is no store): check the endpoint.", "no listing")
    if any(found.get("StorageClass") in COLD_CLASSES for found in answer.get("Contents", ())):
        answer = _with_restored(connection, bucket, prefix, following) or answer
    page = [
        (decode(found["Key"]), found["Size"], found["LastModified"], found.get("ETag"), cold_class(found))
        for found in answer.get("Contents", ())
    ]
    return page, answer.get("NextContinuationToken")


def cold_class(found: dict[str, Any]) -> str | None:
    """The storage class of an object that cannot be read before it is restored, from a listing or a HEAD; else None."""
    storage_class = found.get("StorageClass")
    restored = found.get("RestoreStatus", {}).get("RestoreExpiryDate") or 'ongoing-request="false"' in found.get("Restore", "")
    return storage_class if storage_class in COLD_CLASSES and not restored else None


def _with_restored(connection: Connection, bucket: str, prefix: str, following: dict[str, str]) -> dict[str, Any] | None:
    """The page with what was restored, which has to be asked for; None of a store that does not know that."""
    with suppress(botocore.exceptions.ClientError):
        asked = {"EncodingType": "url", "OptionalObjectAttributes": ["RestoreStatus"], **following}
        return dict(connection.client.list_objects_v2(Bucket=bucket, Prefix=prefix, **asked))
    return None


class _FastPages:
    """Pages by one signed request each."""

    def __init__(self, connection: Connection, bucket: str, prefix: str) -> None:
        self._credentials = connection.session.get_credentials() if connection.signed else None
        self._headers = {"x-amz-request-payer": "requester"} if connection.requester_pays else {}
        self._address, self._region = connection.find(bucket)
        self._question = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        self._http = URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE", True),
            proxies=get_environ_proxies(self._address),
            timeout=(CONNECT_SECONDS, READ_SECONDS),
        )
        self._http._pool_classes_by_scheme.update(end_slow_heads(self._http._pool_classes_by_scheme))

    def ask(self, token: str) -> Page | None:
        """A page and the token of the next one; None where boto3 has to be asked."""
        question = urllib.parse.urlencode({**self._question, "continuation-token": token}, quote_via=urllib.parse.quote)
        try:
            request = AWSRequest("GET", f"{self._address}?{question}", headers=self._headers)
            if self._credentials:
                S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
            answer = self._http.send(request.prepare())
            return _parse(answer.content.decode()) if answer.status_code == 200 else None
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError, ValueError):
            return None


def _parse(text: str) -> Page | None:
    columns = [cells.findall(text) for cells in _CELLS]
    if "<ListBucketResult" not in text or any(len(column) != text.count("<Contents>") for column in columns):
        return None
    if any(f">{name}</StorageClass>" in text for name in COLD_CLASSES):
        return None  # boto3 asks what is restored
    decode = urllib.parse.unquote_plus if "<EncodingType>url</EncodingType>" in text else html.unescape
    page: list[Listed] = [
        (decode(key), int(size), datetime.fromisoformat(time), etag.replace("&quot;", ""), None)
        for key, size, time, etag in zip(*columns, strict=True)
    ]
    following = _NEXT.search(text)
    return page, html.unescape(following[1]) if following else None

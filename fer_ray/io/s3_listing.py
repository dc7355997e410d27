"""Listings of S3 at a tenth of what boto3 takes for a key.

Not through obstore, which takes less still: it fails at keys with empty parts, `.` or `..`, and drops a slash at their ends
without a word. So boto3 signs the address of a page, and what comes is taken apart here; any page that is not as expected is asked
of boto3 again, which also knows what to retry and what to say.
"""

from __future__ import annotations

import html
import os
import re
import urllib.parse
from collections.abc import Iterator
from datetime import datetime

import botocore.exceptions
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from fer_ray.io.s3_client import CONNECT_SECONDS, READ_SECONDS, Connection

Listed = tuple[str, int, datetime, str | None]
"""Key, size, time and etag of an object."""

_CELLS = [re.compile(f"<{name}>([^<]*)</{name}>") for name in ("Key", "Size", "LastModified", "ETag")]
_NEXT = re.compile("<NextContinuationToken>([^<]*)</NextContinuationToken>")


def list_objects(connection: Connection, bucket: str, prefix: str) -> Iterator[Listed]:
    """Every object whose key begins with the prefix, in the order of the keys' bytes; a page of 1,000 is held at a time."""
    http = URLLib3Session(
        verify=os.environ.get("AWS_CA_BUNDLE", True),
        proxies=get_environ_proxies(connection.client.meta.endpoint_url),
        timeout=(CONNECT_SECONDS, READ_SECONDS),
    )
    question = {"Bucket": bucket, "Prefix": prefix, "EncodingType": "url"}
    page, token = _ask_boto3(connection, question)  # first: it finds out where the bucket is
    while True:
        yield from page
        if not token:
            return
        question["ContinuationToken"] = token
        page, token = _ask_fast(connection, http, question) or _ask_boto3(connection, question)


def _ask_boto3(connection: Connection, question: dict[str, str]) -> tuple[list[Listed], str | None]:
    answer = connection.client.list_objects_v2(**question)
    decode = urllib.parse.unquote_plus if answer.get("EncodingType") == "url" else str
    page = [(decode(found["Key"]), found["Size"], found["LastModified"], found.get("ETag")) for found in answer.get("Contents", ())]
    return page, answer.get("NextContinuationToken") if answer["IsTruncated"] else None


def _ask_fast(connection: Connection, http: URLLib3Session, question: dict[str, str]) -> tuple[list[Listed], str | None] | None:
    """A page and the token of the next one; None where boto3 has to be asked."""
    if connection.requester_pays:  # which an address cannot say
        return None
    try:
        url = connection.client.generate_presigned_url("list_objects_v2", Params=question)
        answer = http.send(AWSRequest("GET", url).prepare())
        text = answer.content.decode()
        if answer.status_code != 200 or "<ListBucketResult" not in text[:300]:
            return None
        columns = [cells.findall(text) for cells in _CELLS]
        if any(len(column) != text.count("<Contents>") for column in columns):
            return None
        decode = urllib.parse.unquote_plus if "<EncodingType>url</EncodingType>" in text else html.unescape
        keys, sizes, times, etags = columns
        page = [
            (decode(key), int(size), datetime.fromisoformat(time), etag.replace("&quot;", ""))
            for key, size, time, etag in zip(keys, sizes, times, etags, strict=True)
        ]
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError, ValueError):
        return None
    following = _NEXT.search(text) if "<IsTruncated>true</IsTruncated>" in text else None
    return page, html.unescape(following[1]) if following else None

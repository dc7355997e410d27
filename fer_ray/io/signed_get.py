"""The short way to an object: one signed GET through botocore's own signer and connections.

boto3's `get_object` takes about twice the processor time for it (`benchmarks/s3_throughput.py` prints both), which would
be a quarter of what labeling a portrait takes. Whatever is out of the ordinary is left to boto3.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies, percent_encode

from fer_ray.errors import TooLargeError

DEFAULT_REGION = "us-east-1"


class SignedGet:
    """Reads objects with the credentials and the addresses of a boto3 client; threads may share it."""

    def __init__(self, session: boto3.Session, client: Any, timeouts: tuple[float, float], connections: int) -> None:
        self._credentials = session.get_credentials()
        self._client = client
        self._region = client.meta.region_name if client.meta.region_name not in (None, "aws-global") else DEFAULT_REGION
        self._connections = URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE", True),
            proxies=get_environ_proxies(client.meta.endpoint_url),
            timeout=timeouts,
            max_pool_connections=connections,
        )
        self._bucket_url = functools.lru_cache(self._find_bucket_url)

    def read(self, bucket: str, key: str, limit: float, headers: dict[str, str]) -> bytes | None:
        """The object, or the range that the headers name; None where boto3 had better be asked.

        Raises:
            TooLargeError: more than `limit` bytes would have to be read; they were not.
        """
        if self._credentials is None:
            return None
        try:
            url = self._bucket_url(bucket) + percent_encode(key, safe="/~")
            request = AWSRequest("GET", url, headers=headers, stream_output=True)
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
            answer = self._connections.send(request.prepare())
            body = answer.raw
            expected = int(answer.headers.get("Content-Length", -1))
            if answer.status_code not in (200, 206) or expected < 0:
                body.drain_conn()
                return None
            if expected > limit:
                body.close()
                raise TooLargeError(expected)
            content = bytes(body.read())
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError, urllib3.exceptions.HTTPError, OSError, ValueError):
            return None
        return content if len(content) == expected else None

    def _find_bucket_url(self, bucket: str) -> str:
        """Where boto3 would look for the bucket: in the path or in the host's name."""
        url: str = self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        return url.partition("?")[0].removesuffix("k")

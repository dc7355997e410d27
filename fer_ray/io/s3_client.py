"""How a process talks to S3: boto3's client, obstore's store for each bucket, and what their failures mean."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import boto3.exceptions
import botocore.exceptions
import urllib3.exceptions
from botocore import UNSIGNED
from botocore.config import Config
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from fer_ray.errors import AccessError, ChangedError, DeniedError, OutageError, StorageError, UsageError
from fer_ray.io.pace import end_slow_heads

logger = logging.getLogger(__name__)

_DENIED = "AccessDenied"
_FULL = 507  # a store without space left
REQUEST_ATTEMPTS = 8  # of one request, by botocore
FIRST_ATTEMPTS = 4  # before anything was ever answered: a wrong address is said soon
CONNECT_SECONDS = 10
READ_SECONDS = 30
CONNECTIONS = 32
SCHEME = "s3://"
EXPRESS = "--x-s3"  # ends the names of buckets that ask for keys of their own kind
_CONNECTING = threading.Lock()  # sixteen threads that begin together would each load boto3's descriptions, 0.14 s of CPU time
KEY_MINUTES = 10  # obstore asks boto3 for the keys again when half of it is over; boto3 renews them when 10 to 15 minutes are left
BROKEN_BODY = (
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ConnectionError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)

_FAILURES = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)
_NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
_UNCONNECTED = (botocore.exceptions.ConnectionError, botocore.exceptions.ConnectionClosedError, botocore.exceptions.ReadTimeoutError)
_SILENT = (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)
_WRONG_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_OVERLOADED = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"409", "412", "ConditionalRequestConflict", "PreconditionFailed"}


class _NoContactError(Exception):
    """Nobody has answered; the reason is its cause."""


class _Contact:
    """Ends the tries early while the store has never answered this process: then its address is wrong rather than the store down.

    A worker of a run tries on from the start, since the driver had an answer before it. A GET that is not answered is not tried
    again: whoever reads images finds out whose fault it is, and each try costs the time of one silence.
    """

    def __init__(self) -> None:
        self.made = False

    def __call__(self, attempts: int, response: object, caught_exception: Exception | None, operation: Any, **_: object) -> None:
        if response is not None:
            self.made = True
        if operation.name == "GetObject" and isinstance(caught_exception, botocore.exceptions.ReadTimeoutError):
            raise _NoContactError from caught_exception
        if self.made or not isinstance(caught_exception, _UNCONNECTED) or _ray_is_at_work():
            return
        if attempts >= FIRST_ATTEMPTS or isinstance(caught_exception, _SILENT):
            raise _NoContactError from caught_exception


def _ray_is_at_work() -> bool:
    """In a driver from when it joined the cluster, in a worker always; Ray is not loaded to find out."""
    return bool(getattr(sys.modules.get("ray"), "is_initialized", bool)())


@dataclass
class Connection:
    """What a process has for one store: `client` for everything, `fast_stores` for GETs from the buckets that answered it."""

    session: boto3.Session
    client: Any
    signed: bool
    requester_pays: bool
    fast_stores: dict[str, S3Store | None] = field(default_factory=dict)  # None: boto3 reads there

    def find(self, bucket: str) -> tuple[str, str]:
        """The address and the region of a bucket, as far as boto3 knows: it learns from answers that it got."""
        url = urllib.parse.urlsplit(self.client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}))
        scope = urllib.parse.parse_qs(url.query).get("X-Amz-Credential", [""])[0].split("/")  # key/day/region/s3/aws4_request
        address = urllib.parse.urlunsplit((url.scheme, url.netloc, url.path.removesuffix("/k"), "", ""))
        return address, scope[2] if len(scope) > 2 else "us-east-1"

    def add_fast_store(self, bucket: str) -> None:
        """Give obstore the bucket where boto3 found it, with the keys of the same chain."""
        try:
            self.fast_stores[bucket] = None if bucket.endswith(EXPRESS) else self._make_fast_store(bucket)
        except (BaseError, OSError, ValueError) as error:  # AWS_ variables that obstore reads and does not understand
            self.fast_stores[bucket] = None
            logger.warning("obstore cannot read from %s%s (%s): boto3 reads, at more cost.", SCHEME, bucket, type(error).__name__)

    def _make_fast_store(self, bucket: str) -> S3Store:
        address, region = self.find(bucket)
        options: Any = {
            "allow_http": address.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": timedelta(days=1),
        }
        if authorities := os.environ.get("AWS_CA_BUNDLE"):
            options["root_certificate"] = Path(authorities).read_bytes()
        return S3Store(
            bucket,
            aws_endpoint_url_s3=address,  # stands above what the environment says
            virtual_hosted_style_request=True,  # the address is the bucket's own, wherever its name stands in it
            region=region,
            credential_provider=Boto3CredentialProvider(self.session, ttl=timedelta(minutes=KEY_MINUTES)) if self.signed else None,
            skip_signature=not self.signed,
            request_payer=self.requester_pays,
            client_options=options,
            retry_config={"max_retries": 0},  # whatever fails, boto3 tries again
        )


def connect(endpoint: str, signed: bool, requester_pays: bool, express: bool) -> Connection:
    """The connection to the store at `endpoint` (empty: what the AWS environment says); one a process, which threads share."""
    with _CONNECTING:
        return _connect(endpoint, signed, requester_pays, express)


@functools.lru_cache
def _connect(endpoint: str, signed: bool, requester_pays: bool, express: bool) -> Connection:
    address = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        signature_version=UNSIGNED if not signed else None if express else "s3v4",  # None: what the kind of bucket wants
        # Not "standard": its quota ends the retries of all images when a store is down for some seconds. This one goes on for
        # a minute on average, once there was an answer.
        retries={"mode": "legacy", "total_max_attempts": REQUEST_ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",  # many stores do not know the newer checksums
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if address else "auto"},
    )
    try:
        session = boto3.Session()
        client = session.client("s3", endpoint_url=address, config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise UsageError(f"The S3 client cannot be set up ({type(error).__name__}): check the AWS profile and the endpoint.") from error
    client.meta.events.register_first("needs-retry.s3", _Contact())
    pools = client._endpoint.http_session._pool_classes_by_scheme  # botocore has no door to its connections
    pools.update(end_slow_heads(pools))
    if requester_pays:
        client.meta.events.register("before-call.s3", _say_who_pays)
    return Connection(session, client, signed, requester_pays)


def _say_who_pays(params: dict[str, Any], **_: object) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"


@contextmanager
def explained(uri: str, what: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence that names the address and what to do, without the store's own words."""
    try:
        yield
    except boto3.exceptions.S3UploadFailedError as error:
        raise _translated(error.__cause__ or error.__context__ or error, uri, what) from error
    except (*_FAILURES, *BROKEN_BODY, _NoContactError) as error:
        raise _translated(error, uri, what) from error
    except KeyError as error:  # a gateway's page, without what every answer of a store says
        reason = "what answered is no store"
        raise OutageError(f"{uri} cannot be {what} ({reason}): check the endpoint and the network.", reason) from error


def _translated(error: BaseException, uri: str, what: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, botocore.exceptions.ClientError) else ""
    code = _DENIED if code == "403" else code  # an answer without a body, to HEAD for one, has only the number
    if code in _MISSING:
        return FileNotFoundError(uri)
    if code in _EXISTS and what == "written":
        return FileExistsError(uri)
    if code in _EXISTS:
        return ChangedError(uri)
    if code in _WRONG_CREDENTIALS or isinstance(error, _NO_CREDENTIALS):
        reason = code or "no complete credentials found"
        return StorageError(f"The store refuses the credentials for {uri} ({reason}): check the AWS environment, profile or role.")
    if code == "NoSuchBucket":
        return AccessError(f"The bucket of {uri} does not exist: name an existing one.", "the bucket does not exist")
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        is_outage = code in _OVERLOADED or status == 429 or (status >= 500 and status != _FULL)
        kind = OutageError if is_outage else DeniedError if code == _DENIED else AccessError
        return kind(f"{uri} cannot be {what} ({code}): check the permissions and the store.", code)
    reason = type(error.__cause__ if isinstance(error, _NoContactError) else error).__name__
    return OutageError(f"{uri} cannot be {what} ({reason}): check the endpoint and the network.", reason)

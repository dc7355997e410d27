"""What reading from S3 costs the client: processor time of a GET of 12 kB and of a listed key, against a server on loopback.

The server is a process of its own that hands out the same bytes to whoever asks, so that only the client is measured. GETs
come from 16 threads, as the job's do. `storage` is what the job uses; boto3 and obstore stand beside it.

    .venv/bin/python benchmarks/store_costs.py [--gets N] [--keys N] [--rounds R]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

import boto3
import obstore
from obstore.store import S3Store

from fer_ray.io.storage import Storage

BUCKET = "photographs"
BODY = bytes(12_000)
KEYS_PER_PAGE = 1000
THREADS = 16
KEY = "<Contents><Key>photos/2019/{:09d}.jpg</Key><LastModified>2026-11-20T12:30:00.000Z</LastModified><ETag>&quot;{:032x}&quot;</ETag>"
REST_OF_KEY = "<Size>12000</Size><StorageClass>STANDARD</StorageClass></Contents>"


class Answers(BaseHTTPRequestHandler):
    """An object for every path, and pages of keys without end; the continuation token is the page's number."""

    protocol_version = "HTTP/1.1"
    pages = 0

    def do_GET(self) -> None:
        if "list-type=2" not in self.path:
            self._send(BODY)
            return
        token = re.search(r"continuation-token=(\d+)", self.path)
        page = int(token[1]) if token else 0
        keys = "".join((KEY + REST_OF_KEY).format(n, n) for n in range(page * KEYS_PER_PAGE, (page + 1) * KEYS_PER_PAGE))
        more = page + 1 < self.pages
        rest = f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if more else ""
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
        self._send(f"{head}<IsTruncated>{str(more).lower()}</IsTruncated>{rest}{keys}</ListBucketResult>".encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 12:30:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve(pages: int, told: Connection) -> None:
    Answers.pages = pages
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    told.send(server.server_port)
    server.serve_forever()


def cpu_of(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def listings(endpoint: str) -> dict[str, Callable[[], Iterator[object]]]:
    client = boto3.client("s3", endpoint_url=endpoint)

    def through_boto3() -> Iterator[object]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="photos/"):
            yield from page["Contents"]

    def through_obstore() -> Iterator[object]:
        for chunk in obstore.list(_bare_store(endpoint), "photos", chunk_size=KEYS_PER_PAGE):
            yield from chunk

    return {"storage": lambda: Storage(endpoint).list_files(f"s3://{BUCKET}/photos"), "boto3": through_boto3, "obstore": through_obstore}


def readers(endpoint: str) -> dict[str, Callable[[str], object]]:
    client, bare = boto3.client("s3", endpoint_url=endpoint), _bare_store(endpoint)
    storage = Storage(endpoint)
    return {
        "storage": lambda key: storage.read(f"s3://{BUCKET}/{key}"),
        "boto3": lambda key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read(),
        "obstore": lambda key: bytes(obstore.get(bare, key).bytes()),
    }


def _bare_store(endpoint: str) -> S3Store:
    options = {"allow_http": True, "timeout": timedelta(minutes=1)}
    return S3Store(BUCKET, endpoint=endpoint, client_options=options)  # type: ignore[arg-type]  # a TypedDict, which this dict is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gets", type=int, default=3000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1")
    context = multiprocessing.get_context("spawn")
    hears, tells = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(arguments.keys // KEYS_PER_PAGE, tells), daemon=True)
    server.start()
    endpoint = f"http://127.0.0.1:{hears.recv()}"
    names = [f"photos/{n}.jpg" for n in range(arguments.gets)]
    costs: dict[str, list[float]] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(arguments.rounds):
            for name, read in readers(endpoint).items():
                read(names[0])
                spent = cpu_of(lambda: list(threads.map(read, names)))  # noqa: B023 - done before the next one
                costs.setdefault(f"a GET of 12 kB through {name}, CPU-ms", []).append(1e3 * spent / len(names))
            for name, listed in listings(endpoint).items():
                spent = cpu_of(lambda: sum(1 for _ in listed()))  # noqa: B023 - called at once, before the loop goes on
                costs.setdefault(f"a listed key through {name}, CPU-us", []).append(1e6 * spent / arguments.keys)
    server.terminate()
    for what, figures in costs.items():
        print(f"{what}: {statistics.median(figures):.3g} ({', '.join(f'{figure:.3g}' for figure in figures)})")


if __name__ == "__main__":
    main()

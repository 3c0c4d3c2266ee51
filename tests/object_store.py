"""A real S3 over HTTP, on this machine: moto's server, and a bad way to reach it.

The server runs in a thread, for the whole run of the tests; each test has a bucket of
its own. How to reach it is told as to every program that uses S3, by the environment.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

SECRET: Final = "a-secret-that-nobody-may-see"


@dataclass
class Bucket:
    """A bucket, and how to get at it without kvtape."""

    name: str
    client: Any

    @property
    def url(self) -> str:
        """Return where a repository can be in it."""
        return f"s3://{self.name}/tapes"

    def keys(self) -> list[str]:
        """Return what is in it."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [object_["Key"] for object_ in found]

    def unfinished_uploads(self) -> list[str]:
        """Return the multipart uploads that were neither completed nor given up."""
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in found.get("Uploads", [])]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; yield its address, host:port."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield ":".join(map(str, server.get_host_and_port()))
    finally:
        server.stop()


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have everything in this process that uses S3 use the server at an address."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    # A client that is there already goes on using what it was made for.
    S3FileSystem.clear_instance_cache()


def environment(address: str) -> dict[str, str]:
    """Return what a program needs to know to use the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def new_bucket(monkeypatch: pytest.MonkeyPatch, address: str) -> Iterator[Bucket]:
    """Make a bucket, and have this process use the server that it is on."""
    use(monkeypatch, address)
    client = boto3.client("s3")
    with closing(client):
        bucket = Bucket(uuid.uuid4().hex, client)
        client.create_bucket(Bucket=bucket.name)
        yield bucket
    S3FileSystem.clear_instance_cache()


class _Answer(BaseHTTPRequestHandler):
    """One connection to a bad way."""

    protocol_version = "HTTP/1.1"

    def _go(self) -> None:
        way: BadWay = self.server.way  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        way.requests.append(f"{self.command} {self.path}")
        trouble = way.trouble(self.command, self.path)
        if isinstance(trouble, threading.Event):
            trouble.wait()
        elif trouble == "reset":
            self._reset()
        elif trouble == "reset after":
            self._forward(way.address, body)
            self._reset()
        elif isinstance(trouble, tuple):
            status, code = trouble
            self._answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
        else:
            self._answer(*self._forward(way.address, body))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _go  # noqa: N815

    def _forward(self, address: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with closing(HTTPConnection(address)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        left_out = {"transfer-encoding", "connection", "content-length"}
        length = str(len(body))
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
            elif name.lower() == "content-length" and self.command == "HEAD":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        # Closed with a linger of nothing, the other end sees a reset.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Front(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: that a client hangs up is what is tried."""


@dataclass
class BadWay:
    """What stands before a server, and does to each request what trouble says.

    trouble is asked with the method and the path. None is to pass it on; a status and
    a code are answered; "reset" cuts the connection, "reset after" does so once the
    server has done what was asked; an Event is waited for before nothing is answered.
    """

    address: str
    trouble: Callable[[str, str], object] = lambda *_: None
    requests: list[str] = field(default_factory=list)
    front: str = ""


@contextmanager
def bad_way(address: str) -> Iterator[BadWay]:
    """Stand before the server at an address; front is the address to use instead."""
    way = BadWay(address)
    with _Front(("127.0.0.1", 0), _Answer) as server:
        server.way = way  # type: ignore[attr-defined]
        way.front = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(
            target=server.serve_forever, args=(0.01,), daemon=True
        )
        thread.start()
        try:
            yield way
        finally:
            server.shutdown()
            thread.join()

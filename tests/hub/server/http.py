"""HTTP on loopback: reads requests, sends answers, and does to both what a fault says."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .faults import Fault, damaged
from .messages import Answer, Record, Request

if TYPE_CHECKING:
    from .hub import Hub

PIECE = 2**16  # bytes written at a time


class Listener(ThreadingHTTPServer):
    """One port of a Hub: reserved at its construction, served by threads from `start()` until `stop()`."""

    daemon_threads = True
    allow_reuse_address = False  # two sockets that do not listen yet could be given the same port
    request_queue_size = 128

    def __init__(self, hub: Hub, origin: str, tls: tuple[Path, Path] | None = None):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        self.hub, self.origin = hub, origin
        self.started = False
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_address[1]}"
        self.connections: set[Any] = set()
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake is left to the connection's own thread.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def start(self) -> None:
        """Answers from now on; before that, connections are refused."""
        self.started = True
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remembers a new connection and serves it in a thread."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forgets a connection and ends it."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Closes the port, and the connections that clients keep open for their next request."""
        if self.started:
            self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One connection: each of its requests is recorded, met by a fault or not, and answered by the Hub."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def log_message(self, *arguments: Any) -> None:
        """Keeps the standard library from printing every request."""

    def handle(self) -> None:
        """Serves the connection until one side has gone."""
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        """Cleans up after the connection, whose other side may have gone."""
        with contextlib.suppress(OSError):
            super().finish()

    def handle_any(self) -> None:
        """Serves one request."""
        hub = self.server.hub
        fault = hub.take_fault(self.command, self.path)
        record = Record(self.command, self.path, self.server.origin, time.time(), dict(self.headers), fault.kind)
        hub.log.append(record)
        if fault.kind == "reset":
            return self.reset()
        if fault.kind == "close":
            self.close_connection = True
            return
        if fault.kind == "cut_request":
            self.read_body(fault.after)
            return self.reset()

        body = self.read_body()
        if fault.kind == "corrupt_request" and body:
            body = damaged(body, len(body) // 2)
        record.request_body = body
        if fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault.kind == "status":
            answer = Answer(fault.body, status=fault.status)
        else:
            answer = hub.answer(Request(self.command, self.path, self.headers, body))
        if fault.kind == "lose":
            record.status = answer.status
            return self.reset()
        self.send(answer, fault, record)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def reset(self) -> None:
        """Ends the connection with RST rather than FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def read_body(self, limit: int | None = None) -> bytes:
        """Reads the request's body, or at least `limit` bytes of it."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if limit is not None and len(body) >= limit:
                    return body
            self.rfile.readline()
            return body
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size if limit is None else min(size, limit))

    def send(self, answer: Answer, fault: Fault, record: Record) -> None:
        """Sends an answer: its headers, and unless the request is a HEAD the bytes that are asked for."""
        answer, start, end = asked_range(answer, self.headers.get("Range", ""))
        headers = {"X-Request-Id": secrets.token_hex(8), **answer.headers, "Content-Length": str(end - start)}
        headers = {name: value for name, value in (headers | fault.headers).items() if value is not None}
        record.status, record.response_headers, record.response_body = answer.status, headers, answer.body
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and end > start:
            self.send_body(answer, start, end, fault, record)

    def send_body(self, answer: Answer, start: int, end: int, fault: Fault, record: Record) -> None:
        """Sends the bytes from `start` to `end` of an answer's body, or what a fault makes of them."""
        if fault.kind == "shift" and answer.status == 206 and start:
            start, end = start - 1, end - 1
        damage = start + (end - start) // 2 if fault.kind == "corrupt" else -1
        if fault.kind in ("cut", "reset_after"):
            end = min(end, start + fault.after)
            self.close_connection = True
        for position, piece in pieces(answer.body, start, end):
            if position <= damage < position + len(piece):
                piece = damaged(piece, damage - position)
            record.bytes_sent += len(piece)  # before the client can know, so that it finds the sum complete
            try:
                self.wfile.write(piece)
            except OSError:
                record.bytes_sent -= len(piece)
                raise
        if fault.kind == "reset_after":
            time.sleep(0.2)  # the client takes in what was sent, which RST would throw away
            self.reset()


def asked_range(answer: Answer, header: str) -> tuple[Answer, int, int]:
    """Applies a `Range` header: returns the answer, now of status 206 or 416, and where its bytes start and end."""
    size = answer.size
    match = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", header)
    if answer.status != 200 or "Accept-Ranges" not in answer.headers or not match:
        return answer, 0, size
    first, last, count = match.groups()
    if count:  # from the end
        start, end = max(size - int(count), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= end:
        return Answer(b"", {"Content-Range": f"bytes */{size}"}, 416), 0, 0
    content_range = {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Answer(answer.body, answer.headers | content_range, 206), start, end


def pieces(body: bytes | Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields the bytes from `start` to `end` in small pieces, each with its position; a file is read on the way."""
    if isinstance(body, bytes):
        for position in range(start, end, PIECE):
            yield position, body[position : min(position + PIECE, end)]
        return
    with body.open("rb") as file:
        file.seek(start)
        for position in range(start, end, PIECE):
            yield position, file.read(min(PIECE, end - position))

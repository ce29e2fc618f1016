"""Frames on descriptor 3.

``u32 magic | u32 headerBytes | u32 bodyBytes | header (JSON) | body``, little-endian. Reads and writes are blocking system calls of
the main thread; one buffer is kept, and a frame that fits costs one read and one write.
"""

import os

# By name: the function may replace them in their modules.
from json import dumps
from os import readv, write

from .jsons import parse

FD = 3
MAGIC = b"THAW"
PREFIX_BYTES = 12
HEADER_BYTES_MAX = 64 * 1024

_inbox = bytearray(PREFIX_BYTES + HEADER_BYTES_MAX)
_view = memoryview(_inbox)
_filled = 0


class ServerGone(Exception):
    """The server closed the control socket: there is nobody left to answer."""


def open_channel():
    """Makes the descriptor block, and keeps it from programs that the function starts."""
    os.set_blocking(FD, True)
    os.set_inheritable(FD, False)


def _read_into(view):
    try:
        count = readv(FD, [view])
    except BlockingIOError:
        os.set_blocking(FD, True)
        return 0
    except ConnectionError:
        count = 0
    if count == 0:
        raise ServerGone("the server closed the control socket")
    return count


def _fill(wanted):
    global _filled
    while _filled < wanted:
        _filled += _read_into(_view[_filled:])


def receive():
    """Blocks until a whole frame is there. Returns its header as a dict, and its body as bytes."""
    global _filled
    _fill(PREFIX_BYTES)
    header_bytes = int.from_bytes(_view[4:8], "little")
    body_bytes = int.from_bytes(_view[8:12], "little")
    if _view[0:4] != MAGIC or header_bytes > HEADER_BYTES_MAX:
        raise ValueError("the server sent something that is not a frame")
    body_at = PREFIX_BYTES + header_bytes
    end = body_at + body_bytes
    _fill(body_at)
    header = parse(_view[PREFIX_BYTES:body_at])
    if end <= len(_inbox):
        _fill(end)
        body = bytes(_view[body_at:end])
        rest = _filled - end
        if rest > 0:
            _inbox[0:rest] = _inbox[end:_filled]
        _filled = rest
        return header, body
    body = bytearray(body_bytes)
    at = _filled - body_at
    body[0:at] = _view[body_at:_filled]
    _filled = 0
    with memoryview(body) as rest_of_body:
        while at < body_bytes:
            at += _read_into(rest_of_body[at:])
    return header, body


def rehearse(header, body):
    """What ``receive`` makes of such a frame, where nothing else was read ahead; else as it would come."""
    global _filled
    if _filled > 0:
        return header, body
    frame = encode(header, body)
    _inbox[0 : len(frame)] = frame
    _filled = len(frame)
    return receive()


def _write_all(data):
    view = memoryview(data)
    while len(view) > 0:
        try:
            view = view[write(FD, view) :]
        except BlockingIOError:
            os.set_blocking(FD, True)
        except ConnectionError:
            raise ServerGone("the server closed the control socket") from None


def encode(header, body=b""):
    """The bytes of one frame, except for a body so large that copying it would cost."""
    text = dumps(header).encode()
    prefix = MAGIC + len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text
    return prefix if len(body) > HEADER_BYTES_MAX else prefix + body


def send(header, body=b""):
    """Writes one frame."""
    _write_all(encode(header, body))
    if len(body) > HEADER_BYTES_MAX:
        _write_all(body)

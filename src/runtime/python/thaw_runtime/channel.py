"""Frames on descriptor 3.

``u32 magic | u32 headerBytes | u32 bodyBytes | header (JSON) | body``, little-endian. Reads and writes are blocking system calls of
the main thread; one buffer is kept, and a frame that fits costs one read and one write.
"""

import os
import sys

# By name: the function may replace them in their modules.
from os import readv, writev
from time import sleep

from .jsons import encode, parse

FD = 3
MAGIC = b"THAW"
PREFIX_BYTES = 12
HEADER_BYTES_MAX = 64 * 1024

_inbox = bytearray(PREFIX_BYTES + HEADER_BYTES_MAX)
_view = memoryview(_inbox)
_all = (_view,)
#: Magic, and bytes of header and body; of what comes, and of what goes out.
_told = _view[:PREFIX_BYTES].cast("I")
_prefix = bytearray(MAGIC.ljust(PREFIX_BYTES))
_telling = memoryview(_prefix).cast("I")
_MAGIC = int.from_bytes(MAGIC, sys.byteorder)
_filled = 0
_out = FD
#: Much longer than the server takes.
_CLOSED_S = 10


class ServerGone(Exception):
    """The server closed the control socket: there is nobody left to answer."""


def open_channel():
    """Makes the descriptor block, and keeps it from programs that the function starts."""
    os.set_blocking(FD, True)
    os.set_inheritable(FD, False)


def _await_the_end():
    """Most likely the function has closed the descriptor, or put something else in its place. The server, which sees its end, tells it so after
    a second, and ends it: a process that ended by itself before would be told that it must not exit. Whatever else it was is raised then."""
    sleep(_CLOSED_S)


def _read_into(view):
    try:
        count = readv(FD, [view])
    except BlockingIOError:
        os.set_blocking(FD, True)
        return 0
    except ConnectionError:
        count = 0
    except OSError:
        _await_the_end()
        raise
    if count == 0:
        raise ServerGone("the server closed the control socket")
    return count


def _fill(filled, wanted):
    while filled < wanted:
        filled += _read_into(_view[filled:])
    return filled


def receive():
    """Blocks until a whole frame is there. Returns its header as a dict, and its body as bytes."""
    global _filled
    filled = _filled
    if filled == 0:
        try:
            filled = readv(FD, _all)  # the whole of an ordinary frame
        except OSError:
            pass  # told below
    if filled < PREFIX_BYTES:
        filled = _fill(filled, PREFIX_BYTES)
    header_bytes = _told[1]
    body_bytes = _told[2]
    if _told[0] != _MAGIC or header_bytes > HEADER_BYTES_MAX:
        raise ValueError("the server sent something that is not a frame")
    body_at = PREFIX_BYTES + header_bytes
    end = body_at + body_bytes
    if filled < body_at:
        filled = _fill(filled, body_at)
    header = parse(_view[PREFIX_BYTES:body_at])
    if end <= PREFIX_BYTES + HEADER_BYTES_MAX:
        if filled < end:
            filled = _fill(filled, end)
        body = bytes(_view[body_at:end])
        if filled > end:
            _inbox[0 : filled - end] = _inbox[end:filled]
        if filled - end != _filled:
            _filled = filled - end
        return header, body
    body = bytearray(body_bytes)
    at = filled - body_at
    body[0:at] = _view[body_at:filled]
    _filled = 0
    with memoryview(body) as rest_of_body:
        while at < body_bytes:
            at += _read_into(rest_of_body[at:])
    return header, body


def rehearse(header, body, answer):
    """What ``receive`` makes of such a frame is given to ``answer``, whose own goes nowhere. Not where another frame was read ahead."""
    global _filled, _out
    if _filled > 0:
        return
    text = encode(header)
    frame = MAGIC + len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text + body
    _out = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        _inbox[0 : len(frame)] = frame
        _filled = len(frame)
        answer(*receive())
    finally:
        os.close(_out)
        _out = FD
        _filled = 0


def _write_all(data):
    while data:
        try:
            data = data[writev(_out, (data,)) :]
        except BlockingIOError:
            os.set_blocking(FD, True)
        except ConnectionError:
            raise ServerGone("the server closed the control socket") from None
        except OSError:
            _await_the_end()
            raise


def send(header, body=b""):
    """Writes one frame."""
    text = encode(header)
    header_bytes = _telling[1] = len(text)
    body_bytes = _telling[2] = len(body)
    try:
        written = writev(_out, (_prefix, text, body))
    except OSError:
        written = 0  # told below
    if written < PREFIX_BYTES + header_bytes + body_bytes:
        _write_all(memoryview(b"".join((_prefix, text, body)))[written:])

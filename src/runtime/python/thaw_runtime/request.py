"""What each request runs, from the frame that was read to the answer."""

import os
import sys

# By name: the function, or what is installed beside this, may replace them in their modules.
from os import getpid
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

import snapshot_restore_py as hooks

from . import logs, unique
from .channel import send
from .context import LambdaContext
from .errors import RuntimeFault, describe, log_error
from .jsons import encode, marshal, parse

#: Lambda's limit on a reply: 6 MiB and a little.
REPLY_BYTES_MAX = 6_291_556
#: The process that serves; a child that the function forks has another.
process = getpid()
#: Whether a request of the runtime's own making is answered.
rehearsing = False
#: Whether the last request set a trace id in the environment, whose members are slow to look at.
_traced = "_X_AMZN_TRACE_ID" in os.environ


def flush():
    """What was printed must reach the log before the answer does. The function may have replaced or closed the streams."""
    try:
        sys.stdout.flush()
    except Exception:
        pass
    try:
        sys.stderr.flush()
    except Exception:
        pass


def answer(header, body=b""):
    """Sends a frame, behind what was printed."""
    if getpid() != process:
        os._exit(0)  # a forked child that returned from the handler has nothing to say here
    flush()
    send(header, body)


def _header(kind, request_id, started):
    return {
        "type": kind,
        "requestId": request_id,
        "handlerMs": (perf_counter() - started) * 1000 if started else 0,
        "maxMemoryMb": -(-getrusage(RUSAGE_SELF).ru_maxrss // 1024),
    }


def _fail(request_id, exception, started, last=False):
    header = _header("error", request_id, started)
    if last:
        header["last"] = True
    error = describe(exception, request_id)
    log_error(error)
    answer(header, encode(error))


def _fail_too_large(request_id, size, started):
    message = f"Response payload size ({size} bytes) exceeded maximum allowed payload size ({REPLY_BYTES_MAX} bytes)."
    header = _header("error", request_id, started)
    header["platformError"] = "RESPONSE_TOO_LARGE"
    answer(header, encode(describe(RuntimeFault("Function.ResponseSizeTooLarge", message), request_id)))


def _renew(header):
    """Uniqueness, then the function's own hooks. A clone whose restoring failed half-way must not serve: it answers and ends."""
    global process
    process = getpid()
    if "thaw" in header:
        unique.renew(header["thaw"])
    if rehearsing or "rehearsal" in header or not hooks._after_restore:
        return
    try:
        for func, args, kwargs in list(hooks._after_restore):
            func(*args, **kwargs)
    except Exception as exception:
        error = describe(exception, header["requestId"])
        message = f"{error['errorType']}: {error['errorMessage']}"
        _fail(header["requestId"], RuntimeFault("Runtime.AfterRestoreError", message, error["stackTrace"]), 0, last=True)
        flush()
        os._exit(1)


def _echo(event, _context):
    """In place of the handler, where the server rehearses a start, and ends the process behind the answer: what most handlers do."""
    if sys.stdout is sys.__stdout__:
        print("rehearsal")
    return event


def serve(function, header, body):
    """Answers one request."""
    global _traced
    request_id = logs.request_id = header["requestId"]
    if "traceId" in header:
        os.environ["_X_AMZN_TRACE_ID"] = header["traceId"]
        _traced = True
    elif _traced:
        os.environ.pop("_X_AMZN_TRACE_ID", None)
        _traced = False
    if "thaw" in header or "resumed" in header:
        _renew(header)
    if "rehearsal" in header:
        function = _echo
    started = 0
    try:
        try:
            event = parse(body) if body else {}
        except (ValueError, RecursionError) as error:
            raise RuntimeFault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None
        told = LambdaContext(header)
        started = perf_counter()
        payload = marshal(function(event, told))
    except Exception as exception:
        _fail(request_id, exception, started)
        return
    if len(payload) > REPLY_BYTES_MAX:
        _fail_too_large(request_id, len(payload), started)
    else:
        answer(_header("result", request_id, started), payload)

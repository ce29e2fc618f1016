"""The loop: boot, ready, then for ever read, run, answer.

The main thread is in ``readv(3)`` whenever no request is open. Threads that the function left behind go on, unless the server stops
the whole process.
"""

import gc
import os
import sys

# By name: the function, or what is installed here, may replace them in their modules.
from json import dumps
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

import snapshot_restore_py as hooks

from . import channel, context, handler, logs, loops, spent, unique
from .heat import code_heat
from .jsons import parse

#: Lambda's limit on a reply: 6 MiB and a little.
REPLY_BYTES_MAX = 6_291_556
_main_pid = os.getpid()
#: Whether the last request set a trace id in the environment, whose members are slow to look at.
_traced = "_X_AMZN_TRACE_ID" in os.environ
#: Requests of our own making are answered, and nothing is written.
_rehearsing = False
_rehearsed = False
#: CPython 3.11 and later quicken code at its eighth call, and specialise it at the next ones.
_REHEARSALS = 20


def _flush():
    """What was printed must reach the log before the answer does. The function may have replaced or closed the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def _answer(header, body=b""):
    if os.getpid() != _main_pid:
        os._exit(0)  # a forked child that returned from the handler has nothing to say here
    _flush()
    if _rehearsing:
        channel.encode(header, body)
    else:
        channel.send(header, body)


def _result_header(kind, request_id, started):
    return {
        "type": kind,
        "requestId": request_id,
        "handlerMs": (perf_counter() - started) * 1000 if started else 0,
        "maxMemoryMb": -(-getrusage(RUSAGE_SELF).ru_maxrss // 1024),
    }


def _fail(request_id, exception, started, last=False):
    header = _result_header("error", request_id, started)
    if last:
        header["last"] = True
    error = handler.describe(exception, request_id)
    handler.log_error(error)
    _answer(header, dumps(error).encode())


def _fail_too_large(request_id, size, started):
    message = f"Response payload size ({size} bytes) exceeded maximum allowed payload size ({REPLY_BYTES_MAX} bytes)."
    header = _result_header("error", request_id, started)
    header["platformError"] = "RESPONSE_TOO_LARGE"
    _answer(header, dumps(handler.describe(handler.RuntimeFault("Function.ResponseSizeTooLarge", message), request_id)).encode())


def _renew(header):
    """Uniqueness, then the function's own hooks. A clone whose restoring failed half-way must not serve: it answers and ends."""
    global _main_pid
    _main_pid = os.getpid()
    if "thaw" in header:
        unique.renew(header["thaw"])
    if "rehearsal" in header:
        return
    try:
        for func, args, kwargs in list(hooks._after_restore):
            func(*args, **kwargs)
    except Exception as exception:
        error = handler.describe(exception, header["requestId"])
        message = f"{error['errorType']}: {error['errorMessage']}"
        _fail(header["requestId"], handler.RuntimeFault("Runtime.AfterRestoreError", message, error["stackTrace"]), 0, last=True)
        _flush()
        os._exit(1)


def _echo(event, _context):
    """In place of the handler, where the server rehearses a start, and ends the process behind the answer: what most handlers do."""
    if sys.stdout is sys.__stdout__:
        print("rehearsal")
    return event


def _invoke(function, header, body):
    global _traced
    request_id = header["requestId"]
    logs.begin(request_id)
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
        event = handler.parse_event(body)
        told = context.LambdaContext(header)
        started = perf_counter()
        payload = handler.marshal(function(event, told))
    except Exception as exception:
        _fail(request_id, exception, started)
        return
    if len(payload) > REPLY_BYTES_MAX:
        _fail_too_large(request_id, len(payload), started)
    else:
        _answer(_result_header("result", request_id, started), payload)


def _prepare(header):
    """Before-hooks, then hygiene. Whatever fails of that, in a function that has left no descriptor or no memory, is told, and it goes on."""
    global _main_pid
    _main_pid = os.getpid()  # a clone may be frozen before its first request
    started = perf_counter()
    try:
        for func, args, kwargs in reversed(list(hooks._before_snapshot)):
            func(*args, **kwargs)
        answer = _tidy(header)
    except Exception as exception:
        _answer({"type": "prepareError"}, dumps(handler.describe(exception)).encode())
        return
    answer["hygieneMs"] = (perf_counter() - started) * 1000
    _answer(answer)


def _tidy(header):
    """Hygiene, and what is told of it.

    What survives goes to the permanent generation: a full collection writes the header of every object that it looks at, and so
    would copy each page of the heap after a thaw.
    """
    answer = {"type": "prepared"}
    if header.get("heat"):
        _measure(answer)
    unused = _unused_allocators()
    if unused:
        answer["unusedAllocators"] = unused
    if header.get("collect", True):
        _rehearse_error()
        _rehearse()
        gc.unfreeze()
        gc.collect()
        gc.collect()  # what finalizers of the first one let go
        _trim()
        gc.freeze()
    unique.remember()
    # Links of the directory: its own two, and one for each thread. To list it would take a descriptor.
    if header.get("seeds") and os.stat("/proc/self/task").st_nlink > 3:
        # Other threads, which go on in a clone before this one has read its request.
        answer["seeds"] = unique.seeds()
        loops.keep()
    return answer


def _measure(answer):
    """Ahead of the collection, which also takes what looking leaves behind. An odd module must not prevent a freeze."""
    try:
        heat = code_heat(os.environ.get("LAMBDA_TASK_ROOT", os.getcwd()))
    except Exception:
        return
    if heat is not None:
        answer["heat"] = heat


def _unused_allocators():
    """Libraries with jemalloc in them by which nothing was ever allocated.

    Arrow is built with three allocators, of which one is used (ARROW_DEFAULT_MEMORY_POOL). Memory that jemalloc has given back is what
    cannot be mapped from a file; where it never had any, nothing stands against it. What it maps later is new memory.
    """
    arrow = sys.modules.get("pyarrow")
    if arrow is None:
        return []
    try:
        if arrow.jemalloc_memory_pool().max_memory() != 0:
            return []
        with open("/proc/self/maps") as maps:
            return sorted({name for name in (line.rstrip().rpartition("/")[2] for line in maps) if name.startswith("libarrow.so")})
    except Exception:
        return []  # built without it, half imported, or none of ours


def _trim():
    """Gives free memory of the C library back, where the function uses ctypes anyway.

    Loading ctypes for it would cost each thaw ten mappings, and gained 2 % of an ordinary heap of 50 MB.
    """
    ctypes = sys.modules.get("ctypes")
    if ctypes is not None:
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):
            pass  # a C library without it


def _rehearse_error():
    """Loads what only an error needs (traceback and all it imports), so that no thawed function must."""
    try:
        raise ValueError("rehearsal")
    except ValueError as error:
        channel.encode({"type": "error"}, dumps(handler.describe(error, "")).encode())


def _silent(event, _context):
    return event


def _rehearse():
    """Requests of our own making go the whole way from the read to the answer, except into the descriptor, and nothing of the function's runs.

    Code that CPython has specialised looks up less, and so writes less: a start copies 16 pages fewer of 239. Once in a lineage.
    """
    global _rehearsing, _rehearsed
    if _rehearsed or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return  # the function's own streams would be flushed
    request_id = logs.request_id()
    told = {"type": "invoke", "requestId": "", "deadlineMs": 0, "functionName": "", "functionVersion": "", "memoryMb": 128, "invokedArn": ""}
    _rehearsing = _rehearsed = True
    try:
        for _ in range(_REHEARSALS):
            header, body = channel.rehearse(told, b"{}")
            _invoke(_silent, header, body)
    finally:
        _rehearsing = False
        logs.begin(request_id)


def _load():
    """The handler; says that it is ready, or why it could not be loaded."""
    context.read_environment()
    try:
        function = handler.load(os.environ.get("_HANDLER", ""))
    except Exception as exception:
        error = handler.describe(exception)
        handler.log_error(error)
        _answer({"type": "initError"}, dumps(error).encode())
        os._exit(1)
    _answer({"type": "ready"})
    return function


def _become(header, body):
    """In a clone of the base: the function's environment takes the place of the base's, and other files lie below /var/task."""
    global _main_pid
    _main_pid = os.getpid()
    wanted = parse(body)["env"]
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    for path in [path for path in sys.path_importer_cache if not path.startswith(sys.base_prefix)]:
        del sys.path_importer_cache[path]  # a finder keeps what it saw in its directory
    gc.unfreeze()
    unique.renew(header["thaw"])


def main():
    channel.open_channel()
    unique.install()
    spent.install()
    logs.install()
    # A line at a time: whole lines reach the log even when the function is killed.
    sys.stdout.reconfigure(line_buffering=True)
    if "THAW_BASE" in os.environ:
        function = None  # what is frozen here becomes the base of many images; a clone of it is told what to load
        _answer({"type": "ready"})
    else:
        function = _load()
    try:
        while True:
            header, body = channel.receive()
            kind = header.get("type")
            if kind == "invoke":
                _invoke(function, header, body)
                loops.keep_in_time()
            elif kind == "prepare":
                _prepare(header)
            elif kind == "load":
                _become(header, body)
                function = _load()
            else:
                raise ValueError(f"the server sent a frame of unknown type {kind!r}")
            header = body = None
    except channel.ServerGone:
        _flush()
        os._exit(0)

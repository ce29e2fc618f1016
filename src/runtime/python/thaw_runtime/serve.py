"""The loop: boot, ready, then for ever read, run, answer.

The main thread is in ``readv(3)`` whenever no request is open. Threads that the function left behind go on, unless the server stops
the whole process.
"""

import gc
import os
import sys

# By name: the function may replace it in its module.
from time import perf_counter

import snapshot_restore_py as hooks

from . import request  # isort: skip (what each request runs comes first, and lies together)
from . import channel, context, handler, logs, loops, pools, spent, unique
from .errors import describe, log_error
from .heat import code_heat
from .jsons import encode, parse
from .request import answer

_rehearsed = False
#: CPython 3.11 and later quicken code at its eighth call, and specialise it at the next ones.
_REHEARSALS = 20


def _prepare(header):
    """Before-hooks, then hygiene. Whatever fails of that, in a function that has left no descriptor or no memory, is told, and it goes on."""
    request.process = os.getpid()  # a clone may be frozen before its first request
    started = perf_counter()
    try:
        for func, args, kwargs in reversed(list(hooks._before_snapshot)):
            func(*args, **kwargs)
        told = _tidy(header)
    except Exception as exception:
        answer({"type": "prepareError"}, encode(describe(exception)))
        return
    told["hygieneMs"] = (perf_counter() - started) * 1000
    answer(told)


def _tidy(header):
    """Hygiene, and what is told of it.

    What survives goes to the permanent generation: a full collection writes the header of every object that it looks at, and so
    would copy each page of the heap after a thaw.
    """
    told = {"type": "prepared"}
    if header.get("heat"):
        _measure(told)
    unused = _unused_allocators()
    if unused:
        told["unusedAllocators"] = unused
    if header.get("collect", True):
        _rehearse_error()
        _rehearse()
        gc.unfreeze()
        gc.collect()
        gc.collect()  # what finalizers of the first one let go
        _trim()
        pools.settle()
        gc.freeze()
    unique.remember()
    # Links of the directory: its own two, and one for each thread. To list it would take a descriptor.
    if header.get("seeds") and os.stat("/proc/self/task").st_nlink > 3:
        # Other threads, which go on in a clone before this one has read its request.
        told["seeds"] = unique.seeds()
        loops.keep()
    return told


def _measure(told):
    """Ahead of the collection, which also takes what looking leaves behind. An odd module must not prevent a freeze."""
    try:
        heat = code_heat(os.environ.get("LAMBDA_TASK_ROOT", os.getcwd()))
    except Exception:
        return
    if heat is not None:
        told["heat"] = heat


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
        encode(describe(error, ""))


def _silent(event, _context):
    return event


def _rehearse():
    """First requests of our own making go the whole way from the read to the answer, which goes nowhere, and nothing of the function's runs.

    Code that CPython has specialised looks up less, and so writes less. Once in a lineage: what is renewed by it is renewed in each clone.
    """
    global _rehearsed
    if _rehearsed or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return  # the function's own streams would be flushed
    request_id = logs.request_id
    told = {"type": "invoke", "requestId": "", "deadlineMs": 0, "functionName": "", "functionVersion": "", "memoryMb": 128, "invokedArn": "", "resumed": True}
    if unique.is_plain():
        told["thaw"] = {"id": "", "entropy": "0", "pid": 0, "generation": 0}
    request.rehearsing = _rehearsed = True
    try:
        for _ in range(_REHEARSALS):
            channel.rehearse(told, b"{}", _answer_silently)
    except Exception:
        pass  # no descriptor is left, say; what else fails here does so in the first request, where it is told
    finally:
        request.rehearsing = False
        logs.request_id = request_id


def _answer_silently(header, body):
    request.serve(_silent, header, body)


def _load():
    """The handler; says that it is ready, or why it could not be loaded."""
    context.read_environment()
    try:
        function = handler.load(os.environ.get("_HANDLER", ""))
    except Exception as exception:
        error = describe(exception, "")
        log_error(error)
        answer({"type": "initError"}, encode(error))
        os._exit(1)
    answer({"type": "ready"})
    return function


def _become(header, body):
    """In a clone of the base: the function's environment takes the place of the base's, and other files lie below /var/task."""
    request.process = os.getpid()
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
        answer({"type": "ready"})
    else:
        function = _load()
    try:
        while True:
            header, body = channel.receive()
            kind = header["type"]
            if kind == "invoke":
                request.serve(function, header, body)
                if "asyncio.selector_events" in sys.modules:
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
        request.flush()
        os._exit(0)

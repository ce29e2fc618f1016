"""Event loops of asyncio that another thread runs over a freeze.

Up to Python 3.13 a thread remembers its running loop with the process id under which it began to run, so that a forked child does not
take its parent's for its own. A clone has another process id, and its coroutines would be told that there is no running event loop.
"""

import os
import sys
from _thread import get_ident

_kept = False
_forked = False
#: What tells of the running loop, in ``asyncio.events`` and, of some, in ``asyncio``; not all of it in every version.
_ASKED = ("_get_running_loop", "get_running_loop", "get_event_loop", "_get_event_loop")


def keep():
    """Before a freeze, if there are other threads: loops tell their thread anew that they run, each time that they have waited and before they call anybody.

    A callback that was running at the freeze comes before that. Where it asks for its loop, the thread is told so first.
    """
    global _kept
    module = sys.modules.get("asyncio.selector_events")
    if _kept or module is None:
        return
    _kept = True
    from asyncio import events

    loops = module.BaseSelectorEventLoop
    original = loops._process_events

    def _process_events(self, event_list):
        if self.is_running():
            # Looked up each time, as asyncio does: who replaced it since also replaced what clears it.
            events._set_running_loop(self)
        return original(self, event_list)

    loops._process_events = _process_events
    turn = getattr(loops._run_once, "__code__", None)
    if turn is not None:
        _tell_first(events, turn)


def _tell_first(events, turn):
    """``turn`` is the code in whose frames loops call anybody: the loop of such a frame of the thread's own runs, be its process another one.

    Once in each thread of each clone, as there are those who say on purpose that none runs, and run another inside it.
    """
    noted = events._get_running_loop
    here = os.getpid()
    told = {}  # threads, and the process in which each was last told

    def find():
        thread, process = get_ident(), os.getpid()
        if told.get(thread, here) == process:
            return
        told[thread] = process
        frame = sys._getframe(2)
        while frame is not None and frame.f_code is not turn:
            frame = frame.f_back
        if frame is not None:
            events._set_running_loop(frame.f_locals["self"])

    def wrapped(original):
        def asked(*args, **kwargs):
            if not _forked and noted() is None:
                find()
            return original(*args, **kwargs)

        asked.__doc__ = original.__doc__
        asked.__name__ = asked.__qualname__ = original.__name__
        asked.__module__ = original.__module__
        return asked

    for name in _ASKED:
        original = getattr(events, name, None)
        if original is not None:
            asked = wrapped(original)
            for module in (events, sys.modules["asyncio"]):
                if getattr(module, name, None) is original:
                    setattr(module, name, asked)
    # A child that is forked in a callback has its parent's frames, and runs none of its loops.
    os.register_at_fork(after_in_child=_fork)


def _fork():
    global _forked
    _forked = True


def keep_in_time():
    """Behind each answer, once asyncio is there. Of a freeze without hooks and hygiene, as those from traffic are, nobody is told, and threads go on before their clone's first request."""
    if not _kept and sys.modules["threading"].active_count() > 1:
        keep()

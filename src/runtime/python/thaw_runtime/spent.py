"""Processor time that goes on in clones.

The kernel counts it for each process, so that of a clone begins at zero; who asks for what was spent between two readings, of which one was
before the freeze, would be told less than nothing. Here no reading is less than one before it: a clone's first one is, at the least, the last
of before the freeze. What ``time.clock_gettime`` tells is the kernel's.
"""

import os
import sys
import time

from _thread import _local

from .imports import when_imported


class _Count:
    """One count of the kernel's."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.process = os.getpid()
        self.added = self.told = 0

    def onward(self, spent):
        """What is told in place of ``spent``."""
        process = os.getpid()
        if process != self.process:
            self.process, self.added = process, self.told
        spent += self.added
        self.told = max(self.told, spent)
        return spent


class _ThreadCounts(_local):
    """Those of the thread that asks."""

    def __init__(self):
        self.clock, self.user, self.system = _Count(), _Count(), _Count()


_clock, _times, _usage = _Count(), (_Count(), _Count()), (_Count(), _Count())
_own = _ThreadCounts()


def _begin_in_child():
    """A forked child has spent nothing."""
    for count in (_clock, *_times, *_usage, _own.clock, _own.user, _own.system):
        count.begin()


def _instead(module, name, own):
    original = getattr(module, name)
    own.__name__ = own.__qualname__ = name
    own.__module__ = module.__name__
    own.__doc__ = original.__doc__
    setattr(module, name, own)


def _own_usage(resource):
    getrusage = getattr(resource, "getrusage", None)
    if type(getrusage) is not type(len):
        return  # the function's own module of that name

    def usage(who):
        told = getrusage(who)
        if who == resource.RUSAGE_SELF:
            user, system = _usage
        elif who == resource.RUSAGE_THREAD:
            user, system = _own.user, _own.system
        else:
            return told
        return type(told)((user.onward(told.ru_utime), system.onward(told.ru_stime), *told[2:]))

    _instead(resource, "getrusage", usage)


def install():
    """Once, before the user's code."""
    process_ns, thread_ns, times = time.process_time_ns, time.thread_time_ns, os.times

    def process_time_of_all():
        return _clock.onward(process_ns())

    def thread_time_of_own():
        return _own.clock.onward(thread_ns())

    def times_of_all():
        user, system, *others = times()
        return os.times_result((_times[0].onward(user), _times[1].onward(system), *others))

    _instead(time, "process_time_ns", process_time_of_all)
    _instead(time, "process_time", lambda: process_time_of_all() / 1e9)
    _instead(time, "thread_time_ns", thread_time_of_own)
    _instead(time, "thread_time", lambda: thread_time_of_own() / 1e9)
    _instead(os, "times", times_of_all)
    # We have it by name. A function may have a file that is called so, and this must not be taken for it.
    sys.modules.pop("resource", None)
    when_imported("resource", _own_usage)
    os.register_at_fork(after_in_child=_begin_in_child)

"""Snapshot hooks, with the names that AWS gave them.

``register_before_snapshot(func, *args, **kwargs)`` runs ``func`` before the function is frozen, last in, first out;
``register_after_restore`` after each thaw, first in, first out, before the handler sees the request. Both return ``func``
and so are decorators as well.
"""

_before_snapshot = []
_after_restore = []


def register_before_snapshot(func, *args, **kwargs):
    """Runs ``func(*args, **kwargs)`` before each freeze."""
    if not callable(func):
        raise TypeError(f"a snapshot hook must be callable, not {type(func).__name__}")
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func, *args, **kwargs):
    """Runs ``func(*args, **kwargs)`` after each thaw."""
    if not callable(func):
        raise TypeError(f"a snapshot hook must be callable, not {type(func).__name__}")
    _after_restore.append((func, args, kwargs))
    return func

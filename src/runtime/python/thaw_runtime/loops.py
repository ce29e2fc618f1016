"""Event loops of asyncio that another thread runs over a freeze.

Up to Python 3.13 a thread remembers its running loop with the process id under which it began to run, so that a forked child does not
take its parent's for its own. A clone has another process id, and its coroutines would be told that there is no running event loop.
"""

import sys

_kept = False


def keep():
    """Before a freeze, if there are other threads: loops tell their thread anew that they run, each time that they have waited and before they call anybody."""
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


def keep_in_time():
    """Behind each answer. Of a freeze without hooks and hygiene, as those from traffic are, nobody is told, and threads go on before their clone's first request."""
    if not _kept and "asyncio.selector_events" in sys.modules and sys.modules["threading"].active_count() > 1:
        keep()

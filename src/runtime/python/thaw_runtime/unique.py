"""What two thaws of one image must not share.

``os.urandom``, ``secrets``, ``uuid.uuid4`` and ``random.SystemRandom`` ask the kernel each time; ``ssl`` and ``hashlib`` draw from
OpenSSL, which reseeds when the process id changed; ``os.getpid`` asks the kernel. What remains is renewed here:

- ``random``: the module's own generator, always; and every living ``random.Random`` (or subclass) that was seeded by the
  operating system. One with a seed of the user's choice keeps its sequence, as it would in two boots. They register
  themselves when seeded, because a search of the heap would touch every page of it.
- ``uuid.uuid1``: its node and clock sequence.
- the native id of the main thread. Other threads that lived through the freeze keep the one they had.
"""

import os
import sys

from _weakref import ref

from .imports import when_imported

_generators = {}
_seed_with = None


def _remember(generator):
    key = id(generator)
    _generators[key] = ref(generator, lambda _, key=key: _generators.pop(key, None))


def _track(module):
    """Lets generators of ``module``, which is ``random``, register themselves."""
    global _seed_with
    if not hasattr(module, "Random") or not hasattr(module, "_inst"):
        return  # somebody's own random.py
    original = module.Random.seed

    def seed(self, a=None, version=2):
        if a is None:
            _remember(self)
        else:
            _generators.pop(id(self), None)
        return original(self, a, version)

    seed.__doc__ = original.__doc__
    seed.__qualname__ = original.__qualname__
    seed.__module__ = original.__module__
    module.Random.seed = seed
    _seed_with = original
    _remember(module._inst)


def install():
    """Once, before the user's code."""
    when_imported("random", _track)


def renew(thaw):
    """After each thaw, before everything of the user's. ``thaw`` is that member of the request's header."""
    entropy = int(thaw["entropy"], 16)
    for generator in [reference() for reference in _generators.values()]:
        if generator is not None:
            _seed_with(generator, int.from_bytes(os.urandom(32), "little") ^ entropy)
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        # The C library's generator keeps a clock sequence in memory; without it Python draws one for each uuid1.
        uuid._generate_time_safe = None
        uuid._last_timestamp = None
        uuid._node = int.from_bytes(os.urandom(6), "little") | (1 << 40)  # the multicast bit marks a random node
    threading = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()

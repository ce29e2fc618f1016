"""What two thaws of one image must not share.

``os.urandom``, ``secrets``, ``uuid.uuid4`` and ``random.SystemRandom`` ask the kernel each time; ``ssl`` and ``hashlib`` draw from
OpenSSL, which reseeds when the process id changed; ``os.getpid`` asks the kernel. What remains is renewed here:

- ``random``: the module's own generator, always; and every living ``random.Random`` (or subclass) that was seeded by the
  operating system. One with a seed of the user's choice keeps its sequence, as it would in two boots. They register
  themselves when seeded, because a search of the heap would touch every page of it.
- ``uuid.uuid1``: its node and clock sequence.
- ``numpy.random``: the module's own generator, always; and every other that was seeded by the operating system and lived at the
  freeze. They can neither be held weakly nor registered when they are made, but they keep their entropy: that of the system gets a
  type of its own, and ``remember`` looks for it, if any was drawn since it last did.
- the native id of the main thread. Other threads that lived through the freeze keep the one they had.
"""

import gc
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


class _Drawn(int):
    """Entropy that numpy drew from the operating system. Whoever pickles it gets the number."""

    def __reduce__(self):
        return int, (int(self),)


_numpy_draws = 0  # since the start
_numpy_seen = 0  # of them, when `remember` last looked
_numpy_generators = []  # what it found
_numpy_states = []  # the older interface, whose every object has a generator and a number kept ahead


def _track_numpy(module):
    """Lets ``module``, which is ``numpy.random.bit_generator``, tell its own entropy from seeds of the user's choice."""
    original = getattr(module, "randbits", None)
    if original is None:
        return

    def randbits(bits):
        global _numpy_draws
        _numpy_draws += 1
        return _Drawn(original(bits))

    module.randbits = randbits


def _own_numpy(module):
    """``module``, which is ``numpy.random.mtrand``, has drawn for its own generator, which is always renewed."""
    global _numpy_seen
    _numpy_seen = _numpy_draws


def _is_drawn(generator):
    return type(getattr(getattr(generator, "_seed_seq", None), "entropy", None)) is _Drawn


def _renew_numpy(mtrand):
    global _numpy_seen
    try:
        mtrand._rand.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    except TypeError:
        pass  # the user put a generator of another kind in its place; if it was seeded by the system, it is among those below
    for generator in _numpy_generators:
        generator.state = type(generator)().state
    for states in _numpy_states:
        states.set_state({**states.get_state(legacy=False), "has_gauss": 0, "gauss": 0.0})
    _numpy_seen = _numpy_draws  # those just drawn


def remember():
    """Before a freeze, after its garbage is gone. Costs nothing to a function that uses no generators of numpy's but the module's own."""
    global _numpy_seen
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is None or _numpy_draws == _numpy_seen:
        return
    from numpy.random.bit_generator import BitGenerator

    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    living = [one for one in gc.get_objects() if isinstance(one, (BitGenerator, mtrand.RandomState))]
    if frozen:
        gc.freeze()
    _numpy_generators[:] = [one for one in living if _is_drawn(one)]
    _numpy_states[:] = [one for one in living if _is_drawn(getattr(one, "_bit_generator", None))]
    _numpy_seen = _numpy_draws


def install():
    """Once, before the user's code."""
    when_imported("random", _track)
    when_imported("numpy.random.bit_generator", _track_numpy)
    when_imported("numpy.random.mtrand", _own_numpy)


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
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None:
        _renew_numpy(mtrand)
    threading = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()

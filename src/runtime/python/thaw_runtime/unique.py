"""What two thaws of one image must not share.

``os.urandom``, ``secrets``, ``uuid.uuid4`` and ``random.SystemRandom`` ask the kernel each time; ``ssl`` and ``hashlib`` draw from
OpenSSL, which reseeds when the process id changed; ``os.getpid`` asks the kernel. What remains is renewed here:

- ``random``: the module's own generator, always; and every living ``random.Random`` (or subclass) that was seeded by the
  operating system. One with a seed of the user's choice keeps its sequence, as it would in two boots; so does one that was given a state
  (unpickled, say), unless a generator that is renewed had it. They register themselves when seeded, because a search of the heap would
  touch every page of it.
- ``uuid.uuid1``: its node and clock sequence.
- ``numpy.random``: the module's own generator, always; and every other, and every seed sequence, that was seeded by the operating system
  and lived at the freeze. They can neither be held weakly nor registered when they are made, but they keep their entropy: that of the system gets a
  type of its own, and ``remember`` looks for it, if any was drawn since it last did or any was found. The last drawn numbers are kept, because who unpickles
  a generator has its entropy as a plain number. One that was given another's state is renewed if that one would be, as far as its state tells whose it was.
- what other threads draw from ``random`` and ``uuid.uuid1`` between the thaw and this: ``seeds`` tells where in memory generators
  keep their state, and each clone has random bytes there before any of its threads runs.
- generators of native modules that can be given a seed: ``uuid_utils``; those of functions compiled by ``numba``, in the main thread, as
  numpy's own and the module's of which they are the counterparts; ``polars``, unless the user gave it one.
- ``random()`` and ``randomblob()`` of ``sqlite3``: it seeds its generator anew when it opens a file under another process id.
- ``random``'s own generator and ``uuid.uuid1`` in other interpreters of the process, unless they run just now.
- the native id of the main thread. Other threads that lived through the freeze keep the one they had.
"""

import gc
import os
import sys

from _weakref import ref
from os import getpid, urandom

from .imports import when_imported

_generators = {}
_seed_with = None
_STATE_BYTES = 624 * 4
_states = {}  # hashes of states that were asked of generators that are renewed, the last ones: whoever is given one is renewed, too
_STATES_MAX = 1024


def _remember(generator):
    key = id(generator)
    _generators[key] = ref(generator, lambda _, key=key: _generators.pop(key, None))


def _track(module):
    """Lets generators of ``module``, which is ``random``, register themselves."""
    global _seed_with
    from _random import Random

    if not issubclass(getattr(module, "Random", object), Random) or not hasattr(module, "_inst"):
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
    _seed_with = Random.seed
    _remember(module._inst)
    _track_states(module)


def _track_states(module):
    """A state that is set is the user's choice, as a seed is, unless it was the state of a generator that is renewed: put back, or copied."""
    get, set_to = module.Random.getstate, module.Random.setstate

    def getstate(self):
        state = get(self)
        if id(self) in _generators:
            if len(_states) == _STATES_MAX:
                del _states[next(iter(_states))]
            _states[hash(state[1])] = True
        return state

    def setstate(self, state):
        set_to(self, state)
        if hash(get(self)[1]) in _states:
            _remember(self)
        elif self is not module._inst:
            _generators.pop(id(self), None)

    for new, old in ((getstate, get), (setstate, set_to)):
        new.__doc__ = old.__doc__
        new.__qualname__ = old.__qualname__
        new.__module__ = old.__module__
        setattr(module.Random, new.__name__, new)
    module.getstate = module._inst.getstate


class _Drawn(int):
    """Entropy that numpy drew from the operating system. Whoever pickles it gets the number; a copy of a generator has it as it is."""

    def __reduce__(self):
        return int, (int(self),)

    def __deepcopy__(self, memo):
        return self


_numpy_draws = 0  # since the start
_numpy_drawn = {}  # the last ones
_NUMPY_DRAWN_MAX = 1024
_numpy_sequence = None  # its class
_numpy_seen = 0  # of them, when `remember` last looked
_numpy_sequences = []  # what it found: seeds, of which others are yet to be spawned,
_numpy_generators = []  # what draws,
_numpy_states = []  # and the older interface, whose every object has a generator and a number kept ahead


def _track_numpy(module):
    """Lets ``module``, which is ``numpy.random.bit_generator``, tell its own entropy from seeds of the user's choice."""
    original = getattr(module, "randbits", None)
    if original is None:
        return

    def randbits(bits):
        global _numpy_draws
        _numpy_draws += 1
        if len(_numpy_drawn) == _NUMPY_DRAWN_MAX:
            del _numpy_drawn[next(iter(_numpy_drawn))]
        drawn = _Drawn(original(bits))
        _numpy_drawn[drawn] = True
        return drawn

    module.randbits = randbits


def _own_numpy(module):
    """``module``, which is ``numpy.random.mtrand``, has drawn for its own generator, which is always renewed."""
    global _numpy_seen
    _numpy_seen = _numpy_draws


def _is_drawn(sequence):
    entropy = getattr(sequence, "entropy", None)
    return type(entropy) is _Drawn or (type(entropy) is int and entropy in _numpy_drawn)


def _stream(generator):
    """What of a state is the seed's and no drawing changes; None where there is no such thing."""
    kind = type(generator).__name__
    if kind in ("PCG64", "PCG64DXSM"):
        return kind, generator.state["state"]["inc"]
    if kind == "Philox":
        return kind, *generator.state["state"]["key"].tolist()
    return None


def _find_drawn(generators):
    """Those of which the state is one that was drawn, be it by another."""
    drawn, given = [], []
    for generator in generators:
        sequence = getattr(generator, "_seed_seq", None)
        stream = _stream(generator) if isinstance(sequence, _numpy_sequence) else None
        if stream is not None and stream != _stream(type(generator)(sequence)):
            given.append((generator, stream))
        elif _is_drawn(sequence):
            drawn.append(generator)
    if given:
        streams = {_stream(generator) for generator in drawn}
        for kind in {type(generator) for generator, _ in given}:
            streams.update(_stream(kind(_numpy_sequence(int(entropy)))) for entropy in _numpy_drawn)
        drawn += [generator for generator, stream in given if stream in streams]
    return drawn


def _renew_numpy(mtrand):
    global _numpy_seen
    try:
        mtrand._rand.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    except TypeError:
        pass  # the user put a generator of another kind in its place; if it was seeded by the system, it is among those below
    for sequence in _numpy_sequences:
        known = {"spawn_key": sequence.spawn_key, "pool_size": sequence.pool_size, "n_children_spawned": sequence.n_children_spawned}
        _numpy_sequence.__init__(sequence, **known)
    for generator in _numpy_generators:
        seed = generator._seed_seq  # one of the user's, or of somebody's own kind, is not renewed
        generator.state = type(generator)(seed if isinstance(seed, _numpy_sequence) and _is_drawn(seed) else None).state
    for states in _numpy_states:
        states.set_state({**states.get_state(legacy=False), "has_gauss": 0, "gauss": 0.0})
    _numpy_seen = _numpy_draws  # those just drawn


def remember():
    """Before a freeze, after its garbage is gone. Costs nothing to a function that uses no generators of numpy's but the module's own."""
    global _numpy_seen, _numpy_sequence
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is None or (_numpy_draws == _numpy_seen and not _numpy_sequences):
        return  # what was drawn before may have spawned others, which draw nothing
    from numpy.random.bit_generator import BitGenerator, SeedSequence

    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    living = [one for one in gc.get_objects() if isinstance(one, (BitGenerator, SeedSequence, mtrand.RandomState))]
    if frozen:
        gc.freeze()
    _numpy_sequence = SeedSequence
    _numpy_sequences[:] = [one for one in living if isinstance(one, SeedSequence) and _is_drawn(one)]
    _numpy_generators[:] = _find_drawn(one for one in living if isinstance(one, BitGenerator))
    drawn = {id(one) for one in _numpy_generators}
    _numpy_states[:] = [one for one in living if id(getattr(one, "_bit_generator", None)) in drawn]
    _numpy_seen = _numpy_draws


_SEEDS_MAX = 64
_seeded = []  # what `seeds` told of: it must not be freed, and its memory used for something else, while an image is made of it
_state_at = None
_get_node = None
_renewed_pid = 0  # since `seeds`: the process in which all is as it should be; another one is a clone whose main thread has not come to it yet


class _Spare:
    """``Random.gauss_next``: the number that ``gauss`` keeps for its next call. No other process has it of a generator that is renewed."""

    def __get__(self, generator, owner=None):
        if generator is None:
            return self
        if id(generator) in _generators and os.getpid() != _renewed_pid:
            return None
        return generator.__dict__.get("gauss_next")

    def __set__(self, generator, value):
        generator.__dict__["gauss_next"] = value


def _find_state(random):
    """How far from a generator's address its state lies; -1 where this interpreter keeps it in another form, or ``/proc`` is not there."""
    global _state_at
    if _state_at is None:
        base = random.Random.__base__
        one = base(1)
        state = b"".join(word.to_bytes(4, "little") for word in one.getstate()[:-1])
        try:
            memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _state_at = os.pread(memory, base.__basicsize__, id(one)).find(state)
            finally:
                os.close(memory)
        except OSError:
            _state_at = -1
    return _state_at


def _watch_node(uuid):
    """The C library keeps node and clock sequence of ``uuid1`` in memory; without it Python draws both from ``random``, the node once."""
    global _get_node
    uuid._generate_time_safe = None
    if _get_node is not None:
        return
    _get_node = uuid.getnode

    def getnode():
        if os.getpid() != _renewed_pid:
            uuid._node = uuid._random_getnode()
        return _get_node()

    getnode.__doc__ = _get_node.__doc__
    uuid.getnode = getnode


def seeds():
    """Before a freeze, if there are threads that could draw before the renewal: address and bytes of the state of generators that are renewed."""
    global _renewed_pid
    random = sys.modules.get("random")
    uuid = sys.modules.get("uuid")
    _renewed_pid = os.getpid()
    if hasattr(uuid, "_random_getnode"):
        _watch_node(uuid)
    if not _generators or _find_state(random) < 0:
        return []
    living = [reference() for reference in list(_generators.values())]
    _seeded[:] = [generator for generator in living if generator is not None][:_SEEDS_MAX]
    random.Random.gauss_next = _Spare()
    return [(id(generator) + _state_at, _STATE_BYTES) for generator in _seeded]


_polars_chosen = False  # the user gave it a seed
_polars_seed = None


def _track_polars(module):
    """Lets ``module``, which is ``polars.functions.random``, tell whether it draws by a seed of the user's choice."""
    global _polars_seed
    original = getattr(module, "set_random_seed", None)
    if original is None:
        return
    _polars_seed = original

    def set_random_seed(seed):
        global _polars_chosen
        original(seed)
        _polars_chosen = True

    set_random_seed.__doc__ = original.__doc__
    set_random_seed.__module__ = original.__module__
    module.set_random_seed = set_random_seed


def _renew_native():
    if _polars_seed is not None and not _polars_chosen:
        _polars_seed(int.from_bytes(os.urandom(8), "little"))
    numba = sys.modules.get("numba._helperlib")
    if numba is not None:
        for generator in (numba.rnd_get_np_state_ptr(), numba.rnd_get_py_state_ptr()):
            numba.rnd_set_state(generator, (_STATE_BYTES // 4, memoryview(os.urandom(_STATE_BYTES)).cast("I").tolist()))
    reseed = getattr(sys.modules.get("uuid_utils"), "reseed_rng", None)
    if reseed is not None:
        reseed()


def _renew_interpreters():
    """Each has modules of its own."""
    module = sys.modules.get("_interpreters") or sys.modules.get("_xxsubinterpreters")
    if module is None:
        return
    interpreters = [one[0] if isinstance(one, tuple) else one for one in module.list_all()]
    main = min(interpreters, key=int)
    for one in interpreters:
        if one != main and not module.is_running(one):
            module.run_string(one, _RENEWAL)


_RENEWAL = """
def renew(random, uuid):
    if hasattr(random, "_inst"):
        random.seed()
    if hasattr(uuid, "_random_getnode"):
        uuid._generate_time_safe = uuid._last_timestamp = None
        uuid._node = uuid._random_getnode()

import sys
renew(sys.modules.get("random"), sys.modules.get("uuid"))
del renew
"""


def install():
    """Once, before the user's code."""
    when_imported("random", _track)
    when_imported("numpy.random.bit_generator", _track_numpy)
    when_imported("numpy.random.mtrand", _own_numpy)
    when_imported("polars.functions.random", _track_polars)


def renew(thaw):
    """After each thaw, before everything of the user's. ``thaw`` is that member of the request's header."""
    global _renewed_pid
    if _renewed_pid:
        _renewed_pid = getpid()
        _seeded.clear()
    if _generators:
        entropy = int(thaw["entropy"], 16)
        for reference in list(_generators.values()):
            generator = reference()
            if generator is not None:
                _seed_with(generator, int.from_bytes(urandom(32), "little") ^ entropy)
                generator.gauss_next = None
    modules = sys.modules
    if "uuid" in modules:
        # The C library's generator keeps a clock sequence in memory; without it Python draws one for each uuid1.
        uuid = modules["uuid"]
        uuid._generate_time_safe = None
        uuid._last_timestamp = None
        uuid._node = int.from_bytes(os.urandom(6), "little") | (1 << 40)  # the multicast bit marks a random node
    if "threading" in modules:
        modules["threading"]._main_thread._set_native_id()
    if not modules.keys().isdisjoint(_LIBRARIES):
        _renew_libraries(modules)


#: Modules with generators of their own, beside those of Python's.
_LIBRARIES = ("numpy.random.mtrand", "polars.functions.random", "numba._helperlib", "uuid_utils", "_interpreters", "_xxsubinterpreters", "_sqlite3")


def is_plain():
    """Whether there is nothing to renew but what Python has, which can be done any number of times."""
    return sys.modules.keys().isdisjoint(_LIBRARIES)


def _renew_libraries(modules):
    if "numpy.random.mtrand" in modules:
        _renew_numpy(modules["numpy.random.mtrand"])
    _renew_native()
    _renew_interpreters()
    if "_sqlite3" in modules:
        sqlite3 = modules["_sqlite3"]
        try:
            sqlite3.connect("/tmp")
        except sqlite3.Error:
            pass  # a directory is none of its files; it has looked at the process id before that

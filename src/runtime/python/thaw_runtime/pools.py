"""Where CPython allocates next.

Its allocator keeps pools of blocks of one size. What is freed in between leaves holes in all of them, and what is made next lies wherever a
hole is: on another page each time, which a clone copies to write to it. ``settle`` fills the holes, so that what comes next lies
together, on new pages.
"""

import sys

_POOL_BYTES = 16384 if sys.version_info >= (3, 10) else 4096
#: A pool's own header, behind which its first block lies.
_HEADER_BYTES = 48
_BLOCK_BYTES_MAX = 512
#: For blocks of one size. Where more is free, it stays so.
_FILLING_BYTES_MAX = 65536
#: So long from the beginning that its own memory comes from no pool.
_EMPTY = [None] * (_BLOCK_BYTES_MAX // 8 + 1)
_filling = list(_EMPTY)


def _fill(size):
    """Holds blocks of ``size`` bytes until the next one begins a pool; none where that takes too many, or there is another allocator."""
    held = len(_filling)
    while (len(_filling) - held) * size < _FILLING_BYTES_MAX:
        if size == 16:
            block = object()
        elif size == 32:
            block = (1 << 20) + len(_filling)
        else:
            block = bytes(size - 33)  # zeros, behind what each object has
        if id(block) % _POOL_BYTES == _HEADER_BYTES:
            return
        _filling.append(block)
    del _filling[held:]


def settle():
    """From now on each size begins on a new page. What this holds (0.3 MB in the beginning) was free memory, which it is again at the next call."""
    _filling[:] = _EMPTY
    size = 16
    while size <= _BLOCK_BYTES_MAX:
        _fill(size)
        size += 16

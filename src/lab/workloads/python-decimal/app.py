"""Exact arithmetic in compiled extensions: _decimal.cpython-*.so (libmpdec) divides to 30 places, zlib.cpython-*.so sums up."""

import zlib
from decimal import ROUND_FLOOR, Decimal, getcontext

getcontext().prec = 60
PLACES = Decimal(10) ** -30


def handler(event, context):
    seed = event["seed"]
    quotients = [str((Decimal(seed * step + 1) / 7).quantize(PLACES, rounding=ROUND_FLOOR)) for step in range(1, 201)]
    return {"seed": seed, "last": quotients[-1], "crc": zlib.crc32("\n".join(quotients).encode())}

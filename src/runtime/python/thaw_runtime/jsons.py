"""JSON by the shortest way: the scanner and encoder of ``json`` without the Python code around them.

Each function that a request calls, and each object that it names, is a reference count that a clone writes: a page that it copies.
Made once, before the function can replace them.
"""

import sys

from json import loads as _loads
from json.decoder import JSONDecoder
from json.encoder import JSONEncoder, c_make_encoder, encode_basestring

from .errors import RuntimeFault

#: In place of a decimal until all is written: the encoder knows no number that is written otherwise than it writes it. Behind it, its number.
_DECIMAL = '"thaw:decimal:5f1c09d2a7e84b63:'
_decimals = []
_scan = JSONDecoder().scan_once
_join = "".join
#: Ids of the containers that what is written lies in: what contains itself is refused.
_within = {}


def parse(data):
    """What ``json.loads`` makes of these bytes, which are UTF-8; its errors, too."""
    text = str(data, "utf-8", "surrogatepass")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, ValueError):
        return _loads(text)  # white space ahead, or a mistake: it says which, and where
    return value if end == len(text) else _loads(text)


def _beyond(value):
    """What Lambda's own runtime can write and ``json`` cannot: decimals are numbers, with each of their digits (DynamoDB returns nothing else), bytes are text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    decimal = sys.modules.get("decimal")  # nobody has a Decimal who did not load it
    if decimal is not None and isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return float(value)
        _decimals.append(str(value))
        return f"{_DECIMAL[1:]}{len(_decimals) - 1}"
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _pieces():
    try:
        return c_make_encoder(_within, _beyond, encode_basestring, None, ": ", ", ", False, False, False)
    except TypeError:  # a Python without it, or one that makes it in another way
        encoder = JSONEncoder(ensure_ascii=False, allow_nan=False, default=_beyond)
        return lambda value, _level: encoder.iterencode(value)


_pieces = _pieces()


def _with_decimals(text):
    first, *rest = text.split(_DECIMAL)
    pieces = [first]
    for part in rest:
        index, _, behind = part.partition('"')
        pieces += _decimals[int(index)], behind
    return _join(pieces)


def encode(value):
    """JSON, UTF-8. NaN and infinities are refused: they are not JSON."""
    try:
        text = _join(_pieces(value, 0))
        try:
            return (_with_decimals(text) if _decimals else text).encode()
        except UnicodeEncodeError:
            # Half a surrogate pair: only an escape can say it.
            _decimals.clear()
            return _with_decimals(JSONEncoder(allow_nan=False, default=_beyond).encode(value)).encode()
    except BaseException:
        _within.clear()
        raise
    finally:
        if _decimals:
            _decimals.clear()


def marshal(value):
    """What a handler returned as the body of an answer: bytes as they are, the rest as JSON."""
    if isinstance(value, bytes):
        return value
    try:
        return encode(value)
    except Exception as error:
        raise RuntimeFault("Runtime.MarshalError", f"Unable to marshal response: {error}") from None

"""JSON by the shortest way: the scanner and encoder of ``json`` without most of the Python code around them.

Each function that a request calls, and each object that it names, is a reference count that a clone writes: a page that it copies.
Made once, before the function can replace them.
"""

from json import loads as _loads
from json.decoder import JSONDecoder
from json.encoder import JSONEncoder

_scan = JSONDecoder().scan_once


def parse(data):
    """What ``json.loads`` makes of these bytes, which are UTF-8; its errors, too."""
    text = str(data, "utf-8", "surrogatepass")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, ValueError):
        return _loads(text)  # white space ahead, or a mistake: it says which, and where
    return value if end == len(text) else _loads(text)


def encoder(default, ensure_ascii):
    """A function from values to JSON text: ``default`` is asked for what ``json`` cannot write; NaN and infinities are refused."""
    return JSONEncoder(ensure_ascii=ensure_ascii, allow_nan=False, default=default).encode

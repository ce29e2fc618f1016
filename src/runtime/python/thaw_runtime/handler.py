"""From a handler string, ``package/module.function``, to a function; and from an exception to Lambda's error object."""

import os
import sys

# By name: the function may replace it in its module.
from os import write

from .jsons import encoder, parse


class RuntimeFault(Exception):
    """An error that has a name of Lambda's own, such as ``Runtime.ImportModuleError``."""

    def __init__(self, error_type, message, trace=()):
        super().__init__(message)
        self.error_type = error_type
        self.trace = list(trace)


def _frames(exception, below):
    """Formatted frames of ``exception``, without those of the runtime: the frames above the first one outside ``below``."""
    import traceback

    tb = exception.__traceback__
    while tb is not None and _is_ours(tb.tb_frame.f_code.co_filename, below):
        tb = tb.tb_next
    return traceback.format_tb(tb)


def _is_ours(filename, below):
    return filename.startswith(below) or filename.startswith("<frozen importlib")


_RUNTIME_DIR = os.path.dirname(os.path.abspath(__file__))


def describe(exception, request_id=None):
    """``{errorMessage, errorType, requestId, stackTrace}``; never raises."""
    if isinstance(exception, RuntimeFault):
        error_type, trace = exception.error_type, exception.trace
    else:
        error_type = type(exception).__name__
        try:
            trace = _frames(exception, _RUNTIME_DIR)
        except Exception as failure:  # a traceback that cannot be formatted must not hide the error
            trace = [f"the stack trace cannot be shown: {type(failure).__name__}\n"]
    try:
        message = str(exception)
    except Exception:
        message = "the exception's text cannot be shown"
    error = {"errorMessage": message, "errorType": error_type, "stackTrace": trace}
    if request_id is not None:
        error["requestId"] = request_id
    return error


def log_error(error):
    """Writes ``error`` to the log in the form that Lambda uses."""
    lines = [f"[ERROR] {error['errorType']}: {error['errorMessage']}\n"]
    if error["stackTrace"]:
        lines.append("Traceback (most recent call last):\n")
        lines.extend(error["stackTrace"])
    try:
        write(2, "".join(lines).encode("utf-8", "replace"))
    except OSError:
        pass  # the function closed its stderr; the answer matters more


def load(handler_name):
    """Imports the module and finds the function. Raises RuntimeFault, or what the module itself raised."""
    module_name, dot, function_name = handler_name.rpartition(".")
    if dot == "" or module_name == "" or function_name == "":
        raise RuntimeFault("Runtime.MalformedHandlerName", f"Bad handler '{handler_name}': it must look like module.function")
    if ".." in handler_name:
        raise RuntimeFault("Runtime.MalformedHandlerName", f"Bad handler '{handler_name}': '..' is not allowed in it")
    module_name = module_name.replace("/", ".")
    if module_name.split(".")[0] in sys.builtin_module_names:
        raise RuntimeFault("Runtime.BuiltInModuleConflict", f"Cannot use built-in module {module_name} as a handler module")
    try:
        __import__(module_name)
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise RuntimeFault("Runtime.ImportModuleError", message, _frames(error, _RUNTIME_DIR)) from None
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {(error.text or "").rstrip()}\n']
        raise RuntimeFault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}", trace) from None
    handler = getattr(sys.modules[module_name], function_name, None)
    if handler is None:
        raise RuntimeFault("Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'")
    if not callable(handler):
        raise RuntimeFault("Runtime.HandlerNotFound", f"Handler '{function_name}' on module '{module_name}' is not callable")
    return handler


def parse_event(body):
    """The event of a request; an empty body is ``{}``."""
    if len(body) == 0:
        return {}
    try:
        return parse(body)
    except ValueError as error:
        raise RuntimeFault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None


#: A Decimal with more digits before its point is no number that anybody can read.
_DECIMAL_DIGITS_MAX = 400


def _beyond_json(value):
    """What Lambda's own runtime can write and ``json`` cannot: decimals are numbers (DynamoDB returns nothing else), bytes are text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    decimal = sys.modules.get("decimal")  # nobody has a Decimal who did not load it
    if decimal is not None and isinstance(value, decimal.Decimal):
        whole = value.is_finite() and value.adjusted() < _DECIMAL_DIGITS_MAX and value == value.to_integral_value()
        return int(value) if whole else float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_text_of = encoder(_beyond_json, ensure_ascii=False)
_ascii_of = encoder(_beyond_json, ensure_ascii=True)


def marshal(value):
    """``value`` as JSON bytes; bytes are the answer as they are. NaN and infinities are refused: they are not JSON."""
    if isinstance(value, bytes):
        return value
    try:
        text = _text_of(value)
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            # Half a surrogate pair: only an escape can say it.
            return _ascii_of(value).encode("ascii")
    except Exception as error:
        raise RuntimeFault("Runtime.MarshalError", f"Unable to marshal response: {error}") from None

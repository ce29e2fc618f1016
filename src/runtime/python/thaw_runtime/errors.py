"""From an exception to Lambda's error object."""

import os

# By name: the function may replace it in its module.
from os import write


class RuntimeFault(Exception):
    """An error that has a name of Lambda's own, such as ``Runtime.ImportModuleError``."""

    def __init__(self, error_type, message, trace=()):
        super().__init__(message)
        self.error_type = error_type
        self.trace = list(trace)


_OURS = (os.path.dirname(os.path.abspath(__file__)), "<frozen importlib")


def frames(exception):
    """Formatted frames of ``exception``, from the first one on that is not the runtime's."""
    import traceback

    tb = exception.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_OURS):
        tb = tb.tb_next
    return traceback.format_tb(tb)


def describe(exception, request_id=None):
    """``{errorMessage, errorType, requestId, stackTrace}``; never raises."""
    if isinstance(exception, RuntimeFault):
        error_type, trace = exception.error_type, exception.trace
    else:
        error_type = str(type(exception).__name__)
        try:
            trace = frames(exception)
        except Exception as failure:  # a traceback that cannot be formatted must not hide the error
            trace = [f"the stack trace cannot be shown: {type(failure).__name__}\n"]
    try:
        message = str(exception)
    except BaseException:  # SystemExit, too: it is no answer
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

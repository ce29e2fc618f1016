"""Python's ``logging`` as Lambda sets it up: the root logger has a handler that prints a line with level, UTC time and request.

Without it ``logging.getLogger().setLevel("INFO")``, which is all that Lambda's own examples do, would print no information.
"""

import sys
import time

from .imports import when_imported

_FORMAT = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
#: Of the last request. Lines that are logged belong to it.
request_id = ""


def _set_up(logging):
    if not hasattr(logging, "getLogger") or not hasattr(logging, "Handler"):
        return  # somebody's own logging.py

    class LambdaLoggerHandler(logging.Handler):
        def emit(self, record):
            try:
                text = self.format(record)
                # Behind the line's own end comes what a traceback or a stack has to say, without one.
                sys.stdout.write(text if text.endswith("\n") else text + "\n")
            except Exception:
                self.handleError(record)

    class LambdaLoggerFilter(logging.Filter):
        def filter(self, record):
            record.aws_request_id = request_id
            return True

    logging.Formatter.converter = time.gmtime
    handler = LambdaLoggerHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(LambdaLoggerFilter())
    logging.getLogger().addHandler(handler)


def install():
    """Once, before the user's code."""
    when_imported("logging", _set_up)

"""The second argument of a handler."""

import os
import sys
import time
from json import loads

_log_group_name = None
_log_stream_name = None


class CognitoIdentity:
    """Always empty: there is no Cognito here."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self):
        self.cognito_identity_id = None
        self.cognito_identity_pool_id = None


class Client:
    """What an app on a device says of itself."""

    __slots__ = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")

    def __init__(self, value):
        for name in self.__slots__:
            setattr(self, name, value.get(name))


class ClientContext:
    """``X-Amz-Client-Context``."""

    __slots__ = ("custom", "env", "client")

    def __init__(self, value):
        self.custom = value.get("custom")
        self.env = value.get("env")
        client = value.get("client")
        self.client = Client(client) if isinstance(client, dict) else client


def _client_context(value):
    if isinstance(value, str):
        try:
            value = loads(value)
        except ValueError:
            return None
    return ClientContext(value) if isinstance(value, dict) else None


class LambdaContext:
    """What a handler may know about its request."""

    def __init__(self, header):
        self.aws_request_id = header["requestId"]
        self.function_name = header.get("functionName")
        self.function_version = header.get("functionVersion")
        self.invoked_function_arn = header.get("invokedArn")
        self.memory_limit_in_mb = str(header.get("memoryMb"))
        self.log_group_name = _log_group_name
        self.log_stream_name = _log_stream_name
        self.client_context = _client_context(header["clientContext"]) if "clientContext" in header else None
        self.identity = CognitoIdentity()
        self.tenant_id = None
        self._deadline_ms = header["deadlineMs"]

    def get_remaining_time_in_millis(self):
        """Milliseconds until the request times out; never negative."""
        return max(int(self._deadline_ms - time.time() * 1000), 0)

    def log(self, message):
        """Writes ``message`` to the function's log, without adding a line end."""
        sys.stdout.write(str(message))
        sys.stdout.flush()

    def __repr__(self):
        return f"LambdaContext(aws_request_id={self.aws_request_id}, function_name={self.function_name})"


def read_environment():
    """Once, before the function's code can change it: its members are slow to look at."""
    global _log_group_name, _log_stream_name
    _log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
    _log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")

"""The smallest function in Python, and what thawing must not repeat: every reply has a number of its own."""

import secrets


def handler(event, context):
    name = event.get("name", "world")
    print(f"greeting {name}")
    return {
        "message": f"Hello, {name}!",
        "ticket": secrets.token_hex(8),
        "requestId": context.aws_request_id,
    }

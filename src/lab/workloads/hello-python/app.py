"""The smallest function: what the platform itself costs."""


def handler(event, context):
    return {"greeting": "hello " + event.get("name", "world"), "seed": event.get("seed")}

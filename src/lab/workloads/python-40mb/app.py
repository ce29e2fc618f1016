"""A worker that builds an index of small objects when it loads (about 40 MB resident with the interpreter)
and looks up 100 of them, spread over the heap by the event's seed, in each request."""

COUNT = 100_000
ITEMS = [{"id": i, "name": f"item-{i}", "price": i * 7919 % 10007, "label": i % 13} for i in range(COUNT)]


def handler(event, context):
    seed = event["seed"]
    total = 0
    for step in range(100):
        item = ITEMS[(seed * 104729 + step * 1999) % COUNT]
        total += item["price"] + item["label"]
    return {"count": len(ITEMS), "seed": seed, "sum": total}

"""A worker with 32,000 mappings of a page each: neighbours differ in what may be done to them, so that the kernel does not join them."""
import mmap

COUNT = 32_000
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

held = []
for index in range(COUNT):
    writable = index % 2 == 0
    page = mmap.mmap(-1, 4096, PRIVATE, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    if writable:
        page[0] = index % 251
    held.append(page)


def handler(event, context):
    total = sum(held[index][0] for index in range(0, COUNT, 2))
    return {"mappings": COUNT, "seed": event["seed"], "sum": total}

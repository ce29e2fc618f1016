"""Seven kinds of work, chosen by event["op"]. Every reply can be computed from event["seed"] alone, so the caller
knows a wrong one. What exists before the freeze and must survive it: pool threads, a table in the heap, a file in
/tmp. "calls" counts the requests this process has answered: in a fresh thaw of one image it is always the same."""

import hashlib
import hmac
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor

KEPT = os.path.join(tempfile.gettempdir(), "thaw-lab-kept.txt")
TABLE = [{"index": i, "value": i * 7919 % 10007} for i in range(20_000)]
POOL = ThreadPoolExecutor(max_workers=4)
calls = 0


def derive(text, rounds):
    return hashlib.pbkdf2_hmac("sha256", text.encode(), b"salt", rounds, 16).hex()


list(POOL.map(lambda lane: derive(f"warm {lane}", 1), range(4)))
if not os.path.exists(KEPT):
    with open(KEPT, "w") as kept:
        kept.write("kept over the freeze")


def cpu(seed):
    state = (seed ^ 0x9E3779B9) & 0xFFFFFFFF
    for _ in range(20_000):
        state ^= (state << 13) & 0xFFFFFFFF
        state ^= state >> 17
        state ^= (state << 5) & 0xFFFFFFFF
    return {"value": state}


def allocation(seed):
    buffers = [bytes([(seed + i) & 255]) * 65_536 for i in range(64)]
    total = sum(buffer[(seed * 31 + i * 977) % 65_536] for i, buffer in enumerate(buffers))
    objects = [{"at": (seed + i * 13) % len(TABLE)} for i in range(5_000)]
    total += sum(TABLE[item["at"]]["value"] for item in objects)
    return {"value": total}


def timers(seed):
    fired = {}
    before = time.monotonic()
    threads = [threading.Timer(ms / 1000, lambda ms=ms: fired.update({ms: time.monotonic() - before})) for ms in (6, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    in_time = [ms <= fired.get(ms, 0) * 1000 < 5000 for ms in (6, 2, 4)]
    return {"value": in_time, "wallMs": int(time.time() * 1000)}


def files(seed):
    path = os.path.join(tempfile.gettempdir(), f"thaw-lab-{seed}.bin")
    pattern = f"seed {seed};".encode()
    with open(path, "wb") as file:
        file.write((pattern * (100_000 // len(pattern) + 1))[:100_000])
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    os.unlink(path)
    with open(KEPT) as kept:
        return {"value": digest + ":" + kept.read()}


def threadpool(seed):
    text = "".join(POOL.map(lambda lane: derive(f"{seed}-{lane}", 200), range(4)))
    return {"value": zlib.decompress(zlib.compress(text.encode())).decode()}


def child(seed):
    done = subprocess.run([sys.executable, "-c", f"print({seed} * 2 + 1)"], capture_output=True, check=True, timeout=20)
    return {"value": int(done.stdout)}


def crypto(seed):
    digest = hmac.new(b"key", str(seed).encode(), "sha256").hexdigest()
    return {"value": digest, "unique": [secrets.token_hex(16), str(uuid.uuid4()), repr(random.random())]}


OPERATIONS = {
    "cpu": cpu,
    "allocation": allocation,
    "timers": timers,
    "files": files,
    "threadpool": threadpool,
    "child": child,
    "crypto": crypto,
}


def handler(event, context):
    global calls
    calls += 1
    return {"op": event["op"], "seed": event["seed"], "calls": calls, **OPERATIONS[event["op"]](event["seed"])}

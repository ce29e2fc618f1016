"""The plain interpreter doing the same as a booted function: load the handler, read one request from standard
input, answer on standard output. No sandbox, no supervisor. Arguments: code directory, module, function."""

import importlib
import json
import os
import sys

sys.path.insert(0, sys.argv[1])
handler = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
reply = handler(json.loads(os.read(0, 65_536)), None)
os.write(1, (json.dumps(reply) + "\n").encode())

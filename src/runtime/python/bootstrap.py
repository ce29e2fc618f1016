"""The program that runs a Python function. All it does itself is to set the module path; a main script has no bytecode cache."""

import os
import sys

# The function's own modules come first, then layers, then ours, which have names that nobody else uses.
sys.path[0:1] = [os.environ.get("LAMBDA_TASK_ROOT", os.getcwd()), "/opt/python", os.path.dirname(os.path.abspath(__file__))]

from thaw_runtime import serve  # noqa: E402

serve.main()

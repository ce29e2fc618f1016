"""The program that runs a Python function. All it does itself is to set the module path; a main script has no bytecode cache."""

import os
import sys

# Not in a process of multiprocessing's, which runs its parent's main script under another name, to have its definitions.
if __name__ == "__main__":
    runtime_dir = os.path.dirname(os.path.abspath(__file__))

    # Ahead of the function's own modules, which may be called as one of the standard library that the runtime needs.
    sys.path[0:1] = [runtime_dir]
    from thaw_runtime import serve

    # They come first from here on, then layers, then ours, which have names that nobody else uses.
    sys.path[0:1] = [os.environ.get("LAMBDA_TASK_ROOT", os.getcwd()), "/opt/python", runtime_dir]
    serve.main()

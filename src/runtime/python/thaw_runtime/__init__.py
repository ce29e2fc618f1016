"""The runtime inside a Python function: frames, handler, context, uniqueness, and the loop that joins them."""

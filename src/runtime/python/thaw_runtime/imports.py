"""What must happen to a module as soon as it is imported; most functions import none of those that are asked for."""

import sys


class _Finder:
    """Sees the import of one module, and goes away when that was executed. Being asked for it alone (``find_spec``) changes nothing."""

    def __init__(self, name, then):
        self.name = name
        self.then = then

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.then(module)

        spec.loader.exec_module = exec_module
        return spec


def when_imported(name, then):
    """Calls ``then(module)`` once the module ``name`` is there: now, or right after it was executed."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, then))

"""How far CPython has specialised the function's own code (PEP 659).

From 3.11 on the interpreter rewrites instructions in place, once it has seen what they work on: ``LOAD_ATTR`` becomes
``LOAD_ATTR_SLOT``, ``BINARY_OP`` becomes ``BINARY_OP_ADD_INT``. A code object is *specialised* when at least one of its instructions
is; code that never ran, ran too seldom, or has nothing to specialise is *plain*. Instructions joined in pairs, and those that only wait
for their turn (``…_ADAPTIVE``, ``…_QUICK``), do not count.

Seen are functions and methods of modules whose files lie below the task root or in layers, with all that is defined inside them.
Not seen: code made by ``exec``, and functions that only an object or a collection holds.
"""

import os
import sys
from types import CodeType, FunctionType

CODE_OBJECTS_MAX = 5000


def _instructions():
    """Numbers of specialised instructions, and for each instruction how many cache entries follow it; None where there are none."""
    import opcode  # says what dis would, and loads nothing

    entries = getattr(opcode, "_inline_cache_entries", None)
    families = getattr(opcode, "_specializations", None)
    if entries is None or families is None:
        return None
    numbers = getattr(opcode, "_specialized_opmap", None)  # 3.13
    if numbers is None:
        # They take the free numbers in order, as dis knows too.
        free = [number for number, name in enumerate(opcode.opname) if name.startswith("<")]
        numbers = dict(zip(opcode._specialized_instructions, free))
    width = [0] * 256
    for name, number in opcode.opmap.items():
        if number < 256:
            width[number] = entries.get(name, 0) if isinstance(entries, dict) else entries[number]
    counted = set()
    for base, family in families.items():
        for name in family:
            width[numbers[name]] = width[opcode.opmap[base]]
            if "__" not in name and not name.endswith(("_ADAPTIVE", "_QUICK")) and base != "RESUME":
                counted.add(numbers[name])
    return counted, width


def _is_specialised(code, counted, width):
    content = code._co_code_adaptive
    at = 0
    while at < len(content):
        instruction = content[at]
        if instruction in counted:
            return True
        at += 2 + 2 * width[instruction]
    return False


def _functions(value, depth=0):
    """Those that a member of a module or class is made of."""
    if isinstance(value, FunctionType):
        yield value
        for cell in value.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:
                continue  # not set yet
            if depth < 4:
                yield from _functions(held, depth + 1)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _functions(value.__func__, depth)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from _functions(accessor, depth)
    elif isinstance(value, type) and depth < 4:
        for member in list(type.__dict__["__dict__"].__get__(value).values()):
            yield from _functions(member, depth + 1)


def code_heat(root):
    """``{"functions": …, "tiers": {"plain": …, "specialised": …}}``, or None where the interpreter does not specialise."""
    known = _instructions()
    if known is None:
        return None
    roots = (os.path.join(root, ""), "/opt/")
    pending = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(roots):
            for member in list(vars(module).values()):
                pending.extend(function.__code__ for function in _functions(member))
    # Equal code objects are not the same ones: each has its own instructions.
    seen = set()
    functions = specialised = 0
    while pending and functions < CODE_OBJECTS_MAX:
        code = pending.pop()
        if id(code) in seen or not code.co_filename.startswith(roots):
            continue
        seen.add(id(code))
        functions += 1
        specialised += _is_specialised(code, *known)
        pending.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {"functions": functions, "tiers": {"plain": functions - specialised, "specialised": specialised}}

"""From a handler string, ``package/module.function``, to a function."""

import sys

from .errors import RuntimeFault, frames


def load(handler_name):
    """Imports the module and finds the function. Raises RuntimeFault, or what the module itself raised."""
    module_name, dot, function_name = handler_name.rpartition(".")
    if dot == "" or module_name == "" or function_name == "":
        raise RuntimeFault("Runtime.MalformedHandlerName", f"Bad handler '{handler_name}': it must look like module.function")
    if ".." in handler_name:
        raise RuntimeFault("Runtime.MalformedHandlerName", f"Bad handler '{handler_name}': '..' is not allowed in it")
    module_name = module_name.replace("/", ".")
    if module_name.split(".")[0] in sys.builtin_module_names:
        raise RuntimeFault("Runtime.BuiltInModuleConflict", f"Cannot use built-in module {module_name} as a handler module")
    try:
        __import__(module_name)
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise RuntimeFault("Runtime.ImportModuleError", message, frames(error)) from None
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {(error.text or "").rstrip()}\n']
        raise RuntimeFault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}", trace) from None
    handler = getattr(sys.modules[module_name], function_name, None)
    if handler is None:
        raise RuntimeFault("Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'")
    if not callable(handler):
        raise RuntimeFault("Runtime.HandlerNotFound", f"Handler '{function_name}' on module '{module_name}' is not callable")
    return handler

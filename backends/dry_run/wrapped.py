"""The wheel's namespace with something around every call: records, refusals in one line, traces.

Attributes that are not calls (types, enums, constants) are the wheel's own objects, so isinstance
and configs behave as always.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from backends import op_record
from backends.dry_run.errors import DryRunError, refused, words_of
from backends.dry_run.memory import MemoryWatch
from backends.dry_run.records import describe_inputs, record, tensors_in
from backends.dry_run.traces import HOST_TRAFFIC, TraceRules

_NAMESPACES = ("experimental", "transformer")
# Calls that are no work of the chip: they are checked but do not belong to an op list.
_UNRECORDED = HOST_TRAFFIC | {
    "deallocate",
    "dump_tensor",
    "empty",
    "full",
    "get_device_tensors",
    "zeros",
}
# Values do not exist here, and filling gigabytes of cache on the host would take minutes.
_FILLERS = ("zeros", "ones", "full")
_MUTE = "bad optional access"  # all that C++ says of a value that is not there
# Opening and closing must not be looked at: the mesh is not there yet, or no more.
_PLAIN = frozenset({"open_mesh_device", "close_mesh_device", "get_memory_view"})


class Watch:
    """What all calls of one process share."""

    def __init__(self, ttnn: Any) -> None:
        self.tensor_type: type = ttnn.Tensor
        self.operation_type: type = type(ttnn.linear)
        self.rules = TraceRules(ttnn)
        self.memory = MemoryWatch(ttnn)
        self.calls = 0


class Call:
    """One function of the wheel; `wheel` is the function itself."""

    def __init__(self, path: str, wheel: Callable[..., Any], watch: Watch) -> None:
        self.wheel, self._watch = wheel, watch
        own = getattr(wheel, "python_fully_qualified_name", f"ttnn.{path}")
        self.path = own.removeprefix("ttnn.")  # mul is multiply
        self.is_operation = isinstance(wheel, watch.operation_type) or path in _FILLERS
        self._recorded = self.is_operation and self.path not in _UNRECORDED

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch = self._watch
        watch.rules.before(self.path)
        try:
            result = self.wheel(*args, **kwargs)
        except DryRunError:
            raise
        except Exception as error:
            words = words_of(error, kwargs)
            if words == _MUTE:  # a shard spec was needed and not there: show what was
                inputs = tensors_in((args, kwargs), watch.tensor_type)
                words += "; a shard spec is missing, inputs are " + describe_inputs(inputs)
            raise refused(self.path, words) from None
        if not self.is_operation:
            return result
        watch.calls += 1
        outputs = list(tensors_in(result, watch.tensor_type))
        for tensor in outputs[:1]:
            mesh = tensor.device()
            if mesh is not None:
                watch.memory.look(mesh, tensor.memory_config().buffer_type.name)
        if watch.rules.watching:
            inputs = tensors_in((args, kwargs), watch.tensor_type)
            watch.rules.after(self.path, inputs, outputs)
        if self._recorded and op_record.recording():
            scope = op_record.current_scope()
            op_record.append(record(self.path, args, kwargs, result, scope, watch.tensor_type))
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wheel, name)

    def __repr__(self) -> str:
        return f"<dry run of ttnn.{self.path}>"


class Namespace:
    """ttnn, or a part of it such as ttnn.experimental."""

    def __init__(self, module: ModuleType, path: str, watch: Watch) -> None:
        self._module, self._path, self._watch = module, path, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        path = f"{self._path}{name}"
        rules = self._watch.rules
        if not self._path and name.endswith(("_trace", "_trace_capture")):
            value = getattr(rules, name, value)
        elif name in _NAMESPACES and isinstance(value, ModuleType):
            value = Namespace(value, f"{path}.", self._watch)
        elif path in _FILLERS:
            value = Call(path, _reserve(value, self._module.empty), self._watch)  # type: ignore[attr-defined]
        elif path not in _PLAIN and _is_call(value, self._watch.operation_type):
            value = Call(path, value, self._watch)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return dir(self._module)

    def __repr__(self) -> str:
        return f"<dry run of ttnn.{self._path}>"


def _reserve(filler: Any, empty: Any) -> Callable[..., Any]:
    """A filling op that only allocates, where it would fill on a device."""
    parameters = ("shape", "dtype", "layout", "device", "memory_config")
    has_value = filler.python_fully_qualified_name == "ttnn.full"

    def reserve(*args: Any, **kwargs: Any) -> Any:
        given = dict(kwargs)
        positional = list(args)
        if has_value and given.pop("fill_value", None) is None:
            del positional[1:2]
        given.update(zip(parameters, positional, strict=False))
        if given.get("device") is None or set(given) - set(parameters):
            return filler(*args, **kwargs)
        return empty(**given)

    return reserve


def _is_call(value: Any, operation_type: type) -> bool:
    """A function of the wheel: an op, a Python function or a native one, never a type."""
    if isinstance(value, operation_type | FunctionType | BuiltinFunctionType):
        return True
    return type(value).__name__ in ("nb_func", "nb_method")

"""A CUDA device made of the processor's memory, to run programs whole where there is no GPU.

A pytest plugin (`-p tests.fake_cuda`). A tensor "on CUDA" holds an ordinary one. A call whose
operands lie on two devices is refused as CUDA refuses it, and so are addresses and numpy; what is
read back is counted. Whether CUDA has a kernel for each call this cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
calls: Counter[str] = Counter()  # "cuda": calls with operands there; others: what was read back
_READS = {"cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "equal"}
_REFUSED = {"data_ptr", "untyped_storage", "numpy", "__array__"}
_SAID = {"device": CUDA, "is_cuda": True, "is_cpu": False, "is_meta": False}


class OnCuda(torch.Tensor):
    """An ordinary tensor that says it lies on CUDA."""

    own: torch.Tensor

    @staticmethod
    def __new__(cls, own: torch.Tensor) -> OnCuda:
        made = torch.Tensor._make_wrapper_subclass(
            cls, own.shape, strides=own.stride(), dtype=own.dtype, device=torch.device("meta")
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} was called where nobody listens")


class _Device(TorchFunctionMode):
    """Every call of torch, made where its operands are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_cuda = [x for x in given if isinstance(x, OnCuda)]
        asked = [x for x in tree_flatten((args, kwargs))[0] if _is_device(x)]
        if not on_cuda and not any(torch.device(x).type == "cuda" for x in asked):
            return func(*args, **kwargs)
        if name == "__get__":  # an attribute
            what = func.__self__.__name__
            if what in _SAID:
                return _SAID[what]
        moves = name in ("to", "copy_", "cpu")
        if on_cuda and name in _REFUSED:
            raise TypeError(f"{name} of a tensor on cuda:0")
        if on_cuda and not moves and any(x.dim() for x in given if not isinstance(x, OnCuda)):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
        stays = bool(on_cuda)
        if name == "copy_":
            stays = isinstance(args[0], OnCuda)
        elif name == "cpu" or asked:
            stays = name != "cpu" and torch.device(asked[0]).type == "cuda"
        if on_cuda and (name in _READS or not stays):
            calls[name] += 1
        calls["cuda"] += stays
        known = {id(x.own): x for x in on_cuda}  # what was written in place stays who it was
        own_args, own_kwargs = tree_map(_own, (args, kwargs))
        result = _run(name, func, own_args, own_kwargs)
        if bool(on_cuda) is not stays and any(result is x for x in own_args):
            result = result.clone()  # another device is other memory
        if not stays:
            return result
        if not any(isinstance(x, torch.Tensor) for x in tree_flatten(result)[0]):
            return result
        return tree_map(lambda x: known[id(x)] if id(x) in known else _there(x), result)


def _is_device(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x in ("cuda", "cpu", "meta"))


def _own(x: Any) -> Any:
    if _is_device(x):
        return torch.device("cpu")
    return x.own if isinstance(x, OnCuda) else x


def _there(x: Any) -> Any:
    return OnCuda(x) if isinstance(x, torch.Tensor) else x


def _run(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    if name == "mm" and "out_dtype" in kwargs:  # CUDA alone has it
        wide = kwargs["out_dtype"]
        return args[0].to(wide) @ args[1].to(wide)
    return func(*args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """While it lasts torch has a CUDA device."""
    with (
        mock.patch("torch.cuda.is_available", lambda: True),
        mock.patch("torch.cuda.synchronize", lambda *_: None),
        _Device(),
    ):
        yield


@pytest.fixture(autouse=True, scope="session")
def everywhere() -> Iterator[None]:
    """Of a whole program."""
    with fake_cuda():
        yield

"""A device that is none: tensors that say they are on "pretend" and are computed on the CPU.

A mode fails where CUDA would. CUDA refuses to mix its tensors with those of the CPU, except for single
values, for indices and for copies, and it takes no random numbers from a generator of the CPU. Memory,
streams, kernels and inference mode are not imitated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
# Once a process: autograd wants to know its devices.
_setup_privateuseone_for_python_backend(NAME)
# From now on torch.utils.checkpoint asks for this on every device.
getattr(torch, NAME).get_amp_supported_dtype = lambda: []
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}


class _Pretending(Tensor):
    """A tensor on the pretended device; `held` are its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor) -> "_Pretending":
        # The wrapper has a shape and no memory: an operation that goes past the mode fails at once.
        place = torch.device(NAME, 0)
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=place,
        )
        wrapper.held = real
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, _types: Any, arguments: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        return _compute(operation, arguments, named or {})


class PretendDevice(TorchDispatchMode):
    """Within it, tensors can be made on and moved to the device NAME.

    `operations` counts what was computed there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __enter__(self) -> "PretendDevice":
        future = torch.__future__
        lift, overwrite = (
            torch._C._only_lift_cpu_tensors(),
            future.get_overwrite_module_params_on_conversion(),
        )
        self.before = lift, overwrite
        # Otherwise torch.tensor(..., device=...) would look for a kernel behind the mode's back.
        torch._C._set_only_lift_cpu_tensors(True)
        # Otherwise a module that moves would assign to `data`, which leaves `held` behind.
        future.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before[0])
        torch.__future__.set_overwrite_module_params_on_conversion(self.before[1])
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, operation: Any, _types: Any, arguments: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        result = _compute(operation, arguments, named or {})
        self.operations += any(isinstance(leaf, _Pretending) for leaf in tree_leaves(result))
        return result


def _compute(operation: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, _Pretending)}
    asked = torch.device(named["device"]).type if named.get("device") is not None else None
    if not there and asked != NAME:
        return operation(*arguments, **named)
    if operation not in COPIES:
        _check(operation, arguments, tensors, asked)
        if named.get("generator") is not None:
            raise RuntimeError(f"{operation}: a generator of the CPU cannot draw on {NAME}")
    # The values themselves are computed where they are.
    real_arguments, real_named = tree_map(_real, (arguments, named))
    if asked is not None:
        real_named["device"] = "cpu"
    result = operation(*real_arguments, **real_named)
    if operation is aten._to_copy.default and asked not in (None, NAME):
        return result
    if operation is aten.copy_.default:
        return arguments[0]

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        # What was changed in place stays the same object.
        return there[id(leaf)] if id(leaf) in there else _Pretending(leaf)

    return tree_map(place, result)


def _real(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, _Pretending) else leaf


def _check(operation: Callable[..., Any], arguments: tuple, tensors: list[Tensor], asked: str | None) -> None:
    # Indices may be of the CPU: what is looked at is the indexed tensor, and the values that are put into it.
    checked = [arguments[0], *arguments[2:3]] if operation in INDEXED else tensors
    of_cpu = [leaf for leaf in checked if isinstance(leaf, Tensor) and not isinstance(leaf, _Pretending)]
    # Single values may mix.
    if asked != NAME and any(tensor.ndim for tensor in of_cpu):
        shapes = [(tensor.device.type, *tensor.shape) for tensor in tensors]
        raise RuntimeError(f"{operation} mixes tensors of {NAME} and of the CPU: {shapes}")

"""Record the operations that a network runs on an example, as a graph that computes the same again.

The network must do the same for all images of one shape: what it computes from weights alone is recorded as a
constant, and sizes are recorded as numbers.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
# Whether they return the memory of their argument depends on its strides, which may be others in the graph.
_MAY_SHARE = ("aten::reshape", "aten::flatten", "aten::contiguous", "aten::to")
# In evaluation mode they return their first argument.
_NOTHING = (aten.dropout.default, aten.feature_dropout.default, aten.detach.default, aten.alias.default)


class CannotRecord(Exception):
    """The network does something that a graph cannot repeat."""


@dataclass(frozen=True)
class Recording:
    """Operations from images to features, and the tensors that its `get_attr` nodes name.

    `meta["shape"]` of a node is the shape of its tensor. `meta["shared"]` is True if its memory is also that
    of another node.
    """

    graph: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)

    def constant(self, value: Tensor) -> fx.Node:
        """Insert a node for a constant at the insert point of the graph."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.create_node("get_attr", name)
        node.meta["shape"] = value.shape
        return node

    def compiled(self) -> nn.Module:
        """Return the graph as Python code; memory is freed after its last use."""
        self.graph.eliminate_dead_code()
        used = [str(node.target) for node in self.graph.nodes if node.op == "get_attr"]
        root = nn.Module()
        for name in used:
            setattr(root, name, self.constants[name])
        return fx.GraphModule(root, self.graph)


def record(module: nn.Module, images: Tensor) -> Recording:
    """Run a network in evaluation mode on an example, and record what it does.

    Raises:
        CannotRecord: it does something that cannot be repeated, such as asking for values.
    """
    recorder = _Recorder(images)
    with torch.inference_mode(), recorder:
        features = module(images)
    if not isinstance(features, Tensor) or features not in recorder.nodes:
        raise CannotRecord("the features do not depend on the images")
    recorder.recording.graph.output(recorder.nodes[features])
    return recorder.recording


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording(fx.Graph())
        self.nodes = WeakTensorKeyDictionary()  # of all tensors that depend on the images
        self._add(images, self.recording.graph.placeholder("images"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        output = func(*args, **kwargs)
        if not any(tensor in self.nodes for tensor in given):
            return output  # a constant
        if func in _NOTHING and not (len(args) > 2 and args[2]):
            self.nodes[output] = self.nodes[args[0]]
            self.nodes[output].meta["shared"] = output is not args[0]
            return output
        target = self._without_mutation(func, args[0]) if func._schema.is_mutable else func
        node = self.recording.graph.call_function(target, *tree_map(self._to_node, (args, kwargs)))
        if isinstance(output, Tensor):
            self._add(output, node)
        elif isinstance(output, tuple | list) and all(isinstance(each, Tensor) for each in output):
            for place, each in enumerate(output):
                self._add(each, self.recording.graph.call_function(operator.getitem, (node, place)))
        else:
            raise CannotRecord(f"{func} returns values")
        if not func._schema.is_mutable:
            self._mark_shared(given, output, surely=func._schema.name in _MAY_SHARE)
        return output

    def _add(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["shape"] = tensor.shape
        self.nodes[tensor] = node

    def _to_node(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        return self.nodes[argument] if argument in self.nodes else self.recording.constant(argument)

    def _without_mutation(self, func: Any, changed: Any) -> Any:
        """Return the operation that computes the same as `func`, but into new memory.

        Raises:
            CannotRecord: there is none, or other tensors would see the change.
        """
        name, overload = func._schema.name.partition("::")[2], func._overloadname
        packet = getattr(aten, name.removesuffix("_"), None)
        node = self.nodes[changed] if isinstance(changed, Tensor) and changed in self.nodes else None
        if not name.endswith("_") or packet is None or node is None or node.meta.get("shared"):
            raise CannotRecord(f"{func} changes memory that others may read")
        return getattr(packet, overload)

    def _mark_shared(
        self, given: list[Tensor], output: Tensor | tuple[Tensor, ...] | list[Tensor], *, surely: bool
    ) -> None:
        outputs = [output] if isinstance(output, Tensor) else output
        addresses = {_address(tensor) for tensor in outputs}
        shared = addresses & {_address(tensor) for tensor in given}
        for tensor in (*given, *outputs):
            if tensor in self.nodes and (surely or _address(tensor) in shared):
                self.nodes[tensor].meta["shared"] = True


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by name, with the defaults of the operation."""
    schema: Any = node.target
    names = [argument.name for argument in schema._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in schema._schema.arguments}
    return defaults | dict(zip(names, node.args, strict=False)) | node.kwargs


def pair(value: list[int]) -> list[int]:
    """Return a size for height and width, which may be given by one number."""
    return list(value) * 2 if len(value) == 1 else list(value)

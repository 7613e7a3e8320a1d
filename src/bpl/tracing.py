"""Tracing with ``torch.fx``: layers stay whole, and a part that cannot be traced is left whole too."""

from collections.abc import Callable

import torch
from torch import fx, nn

from bpl.operations import HARMLESS_ATTRIBUTES, IN_PLACE_OPERATORS, SHAPE_QUERIES
from bpl.ordinary import is_identity_in_evaluation
from bpl.partner_conv import PartnerConv2d


def _recorded(function: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is, where that of torch.fx records ``x = x + y``: other names of x see it too."""

    __iadd__, __isub__, __imul__ = map(_recorded, IN_PLACE_OPERATORS)


class _TensorProxy(_Proxy):
    """Stands for a tensor, and says so where a forward pass asks with ``isinstance``: it goes the way that it will."""

    _is_param = _is_buffer = False  # asked for by isinstance(x, nn.Parameter) and isinstance(x, nn.Buffer)

    @property
    def __class__(self) -> type:
        return torch.Tensor


class Tracer(fx.Tracer):
    """Leaves convolutions, normalisations, linear layers (and their subclasses) and partner blocks whole.

    So is stochastic depth: what it draws is no function of its input that a trace could follow.

    A part whose own forward pass cannot be traced (the head of timm's VGG branches on the size of its input) is left
    whole too: nothing is known of what it does, so the channels that it reads stay, and all others may go.
    """

    def __init__(self):
        super().__init__()
        self.closed: dict[str, str] = {}  # name of such a part -> why it cannot be traced
        self._numbers: set[fx.Node] = set()  # what is no tensor: shapes, and what is computed from them

    def proxy(self, node: fx.Node) -> fx.Proxy:
        asked = node.target in SHAPE_QUERIES and (node.target is not getattr or node.args[1] in HARMLESS_ATTRIBUTES)
        inputs = node.all_input_nodes
        if asked or (inputs and self._numbers.issuperset(inputs)):
            self._numbers.add(node)
            return _Proxy(node, self)
        return _TensorProxy(node, self)

    def create_arg(self, a: object) -> object:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)  # before it is asked whether a is a tensor

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        nodes, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever the traced code raises on a proxy
            for node in list(self.graph.nodes)[nodes:][::-1]:
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            name = self.path_of_module(module)
            self.closed = {part: why for part, why in self.closed.items() if not part.startswith(f"{name}.")}
            self.closed[name] = in_one_line(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, PartnerConv2d)
        if isinstance(module, whole) or super().is_leaf_module(module, qualified_name):
            return True
        return is_identity_in_evaluation(module)


def in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"

"""Tracing with ``torch.fx``: layers stay whole, and a part that cannot be traced is left whole too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from bpl.channels.operations import IN_PLACE_OPERATORS, MAKERS
from bpl.channels.ordinary import is_identity_in_evaluation
from bpl.partner_conv import NORMS, PartnerConv2d
from bpl.shown import kind_and_line


def _recorded(function: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is, where that of torch.fx records ``x = x + y``: other names of x see it too."""

    __iadd__, __isub__, __imul__ = map(_recorded, IN_PLACE_OPERATORS)


class Tracer(fx.Tracer):
    """Leaves convolutions, normalisations, linear layers (and their subclasses) and partner blocks whole.

    So is stochastic depth: what it draws is no function of its input. Where it is written into a forward pass, the
    tensor that it draws is recorded: torch.fx alone cannot follow ``torch.rand(x.shape[0], 1, 1, 1)``.

    A part whose own forward pass cannot be traced (the head of timm's VGG branches on the size of its input) is left
    whole too: nothing is known of what it does, so the channels that it reads stay, and all others may go.
    """

    def __init__(self):
        super().__init__()
        self.closed: dict[str, str] = {}  # name of such a part -> why it cannot be traced
        self._takes_one_map = False  # the module that is being called

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with self._makers_recorded():
            return super().trace(root, concrete_args)

    @contextmanager
    def _makers_recorded(self) -> Iterator[None]:
        """Within, what makes tensors is recorded where the size, or something else about it, stands for a value."""

        def recorded(maker: Callable) -> Callable:
            def make(*args: Any, **kwargs: Any) -> Any:
                flat = [
                    part
                    for arg in (*args, *kwargs.values())
                    for part in (arg if isinstance(arg, list | tuple) else [arg])
                ]
                if any(isinstance(part, fx.Proxy) for part in flat):
                    return self.create_proxy("call_function", maker, args, kwargs)
                return maker(*args, **kwargs)

            return make

        for maker in MAKERS:
            setattr(torch, maker.__name__, recorded(maker))
        try:
            yield
        finally:
            for maker in MAKERS:
                setattr(torch, maker.__name__, maker)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if module not in self.submodule_paths and type(module) is nn.Sequential:
            return forward(*args, **kwargs)  # part of another one, as self.features[:4] is: its layers have names
        self._takes_one_map = not kwargs and [type(arg) for arg in args] == [_Proxy]
        nodes, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception as error:  # whatever the traced code raises on a proxy
            if module not in self.submodule_paths:
                raise
            for node in list(self.graph.nodes)[nodes:][::-1]:
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            name = self.path_of_module(module)
            self.closed = {part: why for part, why in self.closed.items() if not part.startswith(f"{name}.")}
            self.closed[name] = kind_and_line(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = (nn.Conv2d, *NORMS, nn.Linear, PartnerConv2d)
        if isinstance(module, whole) or super().is_leaf_module(module, qualified_name):
            return True
        return self._takes_one_map and is_identity_in_evaluation(module)

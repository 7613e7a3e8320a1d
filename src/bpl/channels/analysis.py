"""Which modules share which channels: the one analysis that growing, masking and slimming rest on.

A convolution's output channels do not belong to it alone. Its batch normalisation scales them, a depthwise convolution
carries them on, an addition ties them to another convolution's, and the next convolution reads them. Removing a channel
is exact only if it goes from all of these at once. This module traces a network with ``torch.fx`` and collects each
such set of modules in one `Channels`.

A masked channel is one whose filters, biases and batch normalisation parameters are zero, so that it emits exactly 0.
The analysis also follows where that zero survives: through ReLU it does, through a sigmoid it does not, and then a
reader would see a constant, so these channels are marked frozen, with the reason.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bpl.channels.chance import chance_kept
from bpl.channels.ordinary import is_patched
from bpl.channels.sets import ChannelSets
from bpl.channels.tracing import Tracer
from bpl.channels.walk import ConvSite, Walk
from bpl.copies import check_is_bare, without_values
from bpl.shown import kind_and_line


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What the forward pass takes beside its input where nobody says otherwise: it may branch on that."""
    optional = list(inspect.signature(type(model).forward).parameters.values())[2:]  # after self and the input
    return {
        parameter.name: parameter.default
        for parameter in optional
        if parameter.default is None or isinstance(parameter.default, bool | int | float | str)
    }


@dataclass(frozen=True)
class _Trace:
    """The forward pass in one mode.

    Attributes:
        twin: the copy of the network that was traced: a trace may leave anything on it.
        graph: the operations.
        closed: name of a module whose own forward pass cannot be traced -> why.
    """

    twin: nn.Module
    graph: fx.Graph
    closed: dict[str, str]

    def constants(self) -> dict[str, Tensor]:
        """The tensors that the forward pass makes anew of numbers: tracing left them on the twin, under these names."""
        left = vars(self.twin)
        return {
            node.target: left[node.target] for node in self.graph.nodes if node.op == "get_attr" and node.target in left
        }


def _trace(model: nn.Module, training: bool | None) -> _Trace:
    """The forward pass in a mode, or as the layers' modes are now; it raises whatever the code raises on a proxy."""
    tracer, twin = Tracer(), without_values(model)
    with chance_kept():
        if training is not None:
            twin.train(training)
        if [name for name, _ in twin.named_modules()] != [name for name, _ in model.named_modules()]:
            raise ValueError("it has other layers in this mode")
        return _Trace(twin, tracer.trace(twin, _defaults(model)), tracer.closed)


def _check_can_be_traced(model: nn.Module) -> None:
    """Raise an error for what `torch.fx` cannot look into, and say what could be given instead."""
    check_is_bare(model)
    if is_patched(model):  # torch.fx would trace the forward pass of its class
        raise ValueError(
            f"cannot trace this {type(model).__name__}: its forward pass was replaced on the object; "
            "put it into a class"
        )


def _traces(model: nn.Module) -> tuple[list[_Trace], _Trace]:
    """The forward pass in evaluation and training mode, and as the network is now where its layers' modes are mixed.

    Returns:
        What could be traced, in the same order whatever the mode, and of it the network's present mode.

    Raises:
        ValueError: it cannot be traced as it is now.
    """
    modes = {module.training for module in model.modules()}
    traces: list[_Trace] = []
    for training in (False, True, *((None,) if len(modes) > 1 else ())):
        present = training is None or modes == {training}
        try:
            traces.append(_trace(model, None if present else training))
        except Exception as error:  # torch.fx raises whatever the traced code raises on a proxy
            if present:
                raise ValueError(
                    f"cannot trace {type(model).__name__}: torch.fx cannot follow its forward pass, which may branch "
                    f"on values or change tensors in place ({kind_and_line(error)})"
                ) from error
            continue
        if present:
            now = traces[-1]
    return traces, now


class ChannelGraph:
    """The channel sets of a network.

    A network may compute otherwise in training than in evaluation: heads that only training has, stochastic depth. So
    it is looked at in both modes. A channel may go only where it may in both, and the layers that only one of them uses
    are in the sets too.

    Args:
        model: any network that ``torch.fx`` can trace, with or without partners. What its forward pass takes beside the
            images is taken at its default. Where it can be traced in the mode that it is in but not in the other, that
            one is left out.

    Attributes:
        sets: all `Channels`, in the order of the forward pass.
        of_conv: conv name -> the `Channels` it produces.
        sites: conv name -> its `ConvSite`.
        traced: the operations of the forward pass in the mode that the network is in; convolutions, normalisations and
            linear layers are one each.
        constants: name of a tensor that `traced` refers to and the network does not have -> that tensor, which the
            forward pass makes of numbers.
        modules: name -> module of the network.
        calls: name of a normalisation or a module with parameters -> how many times the forward pass uses it or,
            through another module that has the same parameter, its weights; in the mode in which that is more.
        closed: name of a module whose own forward pass cannot be traced -> why: it is left as it is.
        hooked: names of the layers with forward hooks, which may do anything: they are left as they are. Hooks on what
            holds layers, such as an `nn.Sequential`, are followed: they are called with what tracing passes through it.

    Raises:
        TypeError: not a network.
        ValueError: the network cannot be traced (its forward branches on data, or was replaced on the object), or it is
            inside a wrapper.
    """

    def __init__(self, model: nn.Module):
        _check_can_be_traced(model)
        self.model = model
        traces, now = _traces(model)
        self.traced, self.constants = now.graph, now.constants()
        self.modules = dict(model.named_modules())
        found = ChannelSets()
        walks = [Walk(model, trace.twin, trace.graph, trace.closed, found) for trace in traces]
        self.closed = {name: why for trace in traces for name, why in trace.closed.items()}
        self.hooked = list(dict.fromkeys(name for walk in walks for name in walk.hooked))
        for name in self.closed:  # another mode may have looked into it, and does not know what this one does there
            found.freeze_inside(name, f"{name!r} cannot be traced")
        self.sets = list(found)
        self.of_conv = found.of_conv()
        self.sites: dict[str, ConvSite] = {}
        self.calls: dict[str, int] = {}
        read: dict[str, set[str]] = {}  # layer -> names of the operations whose results it reads, in any mode
        for walk in walks:
            for node in walk.graph.nodes:
                if node.op == "call_module":
                    read.setdefault(node.target, set()).update(str(n.target) for n in node.all_input_nodes)
            self.sites |= walk.sites
            for name, times in walk.calls.items():
                self.calls[name] = max(times, self.calls.get(name, 0))
        for name, site in self.sites.items():
            norms = {walk.sites[name].norm for walk in walks if name in walk.sites}
            if len(norms) > 1 or (site.norm is not None and read[site.norm] != {name}):
                self.sites[name] = ConvSite(None, site.stride)  # in another mode it is another layer's, or none

    def what_is_closed(self) -> str:
        """The end of an error message that says which parts could not be looked into; empty where there are none."""
        parts = [f"{name!r} cannot be traced ({why})" for name, why in self.closed.items()]
        parts += [f"{name!r} has forward hooks" for name in self.hooked]
        return "; " + ", ".join(parts) if parts else ""

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
from typing import Any

import torch
from torch import fx, nn

from bpl.channel_sets import Channels, ChannelSets
from bpl.channel_walk import ConvSite, Walk
from bpl.copies import attributes_kept, check_is_network
from bpl.ordinary import is_patched
from bpl.tracing import Tracer, in_one_line

__all__ = ["ChannelGraph", "Channels", "ConvSite"]


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What the forward pass takes beside its input where nobody says otherwise: it may branch on that."""
    optional = list(inspect.signature(type(model).forward).parameters.values())[2:]  # after self and the input
    return {
        parameter.name: parameter.default
        for parameter in optional
        if parameter.default is None or isinstance(parameter.default, bool | int | float)
    }


def _trace(model: nn.Module, training: bool) -> tuple[fx.Graph, dict[str, str]]:
    """The forward pass in one mode, and which modules could not be traced and why; the network is left as it is."""
    tracer = Tracer()
    with torch.random.fork_rng(devices=[]), attributes_kept(model):  # its layers' modes are among these
        if model.training != training:
            model.train(training)
        return tracer.trace(model, _defaults(model)), tracer.closed


def _refuse_what_is_no_network(model: nn.Module) -> None:
    """Raise an error for what a network is wrapped in or was turned into, and say where the network itself is."""
    check_is_network(model)
    wrapped = f"cannot look into this {type(model).__name__}: "
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(wrapped + "give it the network inside, model.module, and wrap the result again")
    if hasattr(model, "_orig_mod"):  # of torch.compile
        raise ValueError(wrapped + "give it the network that was compiled, and compile the result")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(wrapped + "give it the network that was scripted or traced")
    if is_patched(model):  # torch.fx would trace the forward pass of its class
        raise ValueError(
            f"cannot trace this {type(model).__name__}: its forward pass was replaced on the object; "
            "put it into a class"
        )


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
        modules: name -> module of the network.
        calls: name of a normalisation or a module with parameters -> how many times the forward pass uses it or,
            through another module that has the same parameter, its weights; in the mode in which that is more.
        closed: name of a module whose own forward pass cannot be traced -> why: it is left as it is.
        hooked: names of the layers with forward hooks, which may do anything: they are left as they are.

    Raises:
        TypeError: not a network.
        ValueError: the network cannot be traced (its forward branches on data, or was replaced on the object), or it is
            inside a wrapper.
    """

    def __init__(self, model: nn.Module):
        _refuse_what_is_no_network(model)
        self.model = model
        traces: dict[bool, tuple[fx.Graph, dict[str, str]]] = {}
        for training in (False, True):  # in this order whatever the mode, so that it makes no difference
            try:
                traces[training] = _trace(model, training)
            except Exception as error:  # torch.fx raises whatever the traced code raises on a proxy
                if training == model.training:
                    raise ValueError(
                        f"cannot trace {type(model).__name__}: its forward pass must not branch on tensor values "
                        f"({in_one_line(error)})"
                    ) from error
        self.traced = traces[model.training][0]
        found = ChannelSets()
        walks = [Walk(model, graph, closed, found) for graph, closed in traces.values()]
        self.modules = dict(model.named_modules())
        self.sets = list(found)
        self.of_conv = found.of_conv()
        self.sites: dict[str, ConvSite] = {}
        self.calls: dict[str, int] = {}
        self.closed: dict[str, str] = {}
        for walk, (_, closed) in zip(walks, traces.values(), strict=True):
            self.closed |= closed
            for name, site in walk.sites.items():
                same = self.sites.get(name, site).norm == site.norm  # else no one normalisation belongs to it
                self.sites[name] = site if same else ConvSite(None, site.stride)
            for name, times in walk.calls.items():
                self.calls[name] = max(times, self.calls.get(name, 0))
        self.hooked = list(dict.fromkeys(name for walk in walks for name in walk.hooked))

    def what_is_closed(self) -> str:
        """The end of an error message that says which parts could not be looked into; empty where there are none."""
        parts = [f"{name!r} cannot be traced ({why})" for name, why in self.closed.items()]
        parts += [f"{name!r} has forward hooks" for name in self.hooked]
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.modules.values()):
            parts.append("convert its BatchNorm2d to SyncBatchNorm afterwards, not before")
        return "; " + ", ".join(parts) if parts else ""

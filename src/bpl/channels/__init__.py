"""Which modules of a network share which channels: what growing, masking and slimming rest on."""

from bpl.channels.analysis import ChannelGraph
from bpl.channels.sets import Channels
from bpl.channels.walk import ConvSite

__all__ = ["ChannelGraph", "Channels", "ConvSite"]

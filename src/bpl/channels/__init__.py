"""Which modules of a network share which channels: what growing, masking and slimming rest on."""

from bpl.channels.analysis import ChannelGraph, Channels, ConvSite

__all__ = ["ChannelGraph", "Channels", "ConvSite"]

"""Sets of modules that share a channel dimension, merged as the analysis finds out that they do."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Channels:
    """One channel dimension that several modules share: a channel goes from all of them or from none.

    Attributes:
        size: number of channels.
        convs: names of the convolutions that produce these channels. A depthwise convolution carries its input
            channels on, so it stands in the same list as the convolution before it.
        norms: names of the batch normalisations that scale them.
        readers: names of the convolutions and linear layers that read them, with the number of input features that
            one channel stands for (more than 1 where a map is flattened before a linear layer).
        tied: whether an addition ties them to another convolution's channels.
        frozen: why no channel of this set may be removed; None where channels may be.
    """

    size: int
    convs: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    tied: bool = False
    frozen: str | None = None


class ChannelSets:
    """All channel sets of a network: a union-find over `Channels`, in which each module stands in one set a role.

    A module that is met again, in the other mode of the network, ties the set that it stands in to the one where it is
    met: a channel may go only if it may go in both.
    """

    def __init__(self):
        self._all: list[Channels] = []
        self._merged_into: dict[int, Channels] = {}
        self._place: dict[tuple[str, str], Channels] = {}  # role and name of a module -> the set that it was put into

    def __iter__(self):
        """The sets that are not part of another, in the order in which they were made."""
        return (channels for channels in self._all if id(channels) not in self._merged_into)

    def new(self, size: int, frozen: str | None = None) -> Channels:
        """A set of `size` channels by itself, 0 where that is not known."""
        channels = Channels(size, frozen=frozen)
        self._all.append(channels)
        return channels

    def find(self, channels: Channels) -> Channels:
        """The set that a set has become part of; itself while it is one."""
        while id(channels) in self._merged_into:
            channels = self._merged_into[id(channels)]
        return channels

    def freeze(self, channels: Channels, reason: str) -> None:
        """Let no channel of a set go; the first reason stays."""
        channels = self.find(channels)
        channels.frozen = channels.frozen or reason

    def freeze_inside(self, name: str, reason: str) -> None:
        """Let no channel go of a set that a layer inside a module stands in."""
        for (_, layer), channels in self._place.items():
            if layer.startswith(f"{name}."):
                self.freeze(channels, reason)

    def merge(self, first: Channels, second: Channels) -> Channels:
        """Make one set of two; both are frozen instead where their sizes differ. Returns the set, or the larger one."""
        first, second = self.find(first), self.find(second)
        if first is second:
            return first
        if first.size != second.size:  # neither side can lose a channel
            reason = "it is broadcast against another number of channels"
            if not (first.size and second.size):
                reason = "it is combined with something whose channels are not known"
            self.freeze(first, reason)
            self.freeze(second, reason)
            return max(first, second, key=lambda channels: channels.size)
        first.convs += second.convs
        first.norms += second.norms
        first.readers += second.readers
        first.tied |= second.tied
        first.frozen = first.frozen or second.frozen
        self._merged_into[id(second)] = first
        return first

    def add_conv(self, channels: Channels, name: str) -> Channels:
        """Put a convolution where its output channels are; returns the set that it then stands in."""
        return self._put("convs", name, name, channels)

    def add_norm(self, channels: Channels, name: str) -> None:
        """Put a batch normalisation where the channels are that it scales."""
        self._put("norms", name, name, channels)

    def add_reader(self, channels: Channels, name: str, features: int) -> None:
        """Put a layer where the channels are that it reads, `features` of its inputs being one channel."""
        self._put("readers", name, (name, features), channels)

    def of_conv(self) -> dict[str, Channels]:
        """Conv name -> the set that it stands in."""
        return {name: self.find(channels) for (role, name), channels in self._place.items() if role == "convs"}

    def _put(self, role: str, name: str, entry: object, channels: Channels) -> Channels:
        channels = self.find(channels)
        before = self._place.setdefault((role, name), channels)
        if before is not channels:
            return self.merge(before, channels)
        if entry not in getattr(channels, role):
            getattr(channels, role).append(entry)
        return channels

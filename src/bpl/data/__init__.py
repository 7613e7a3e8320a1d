"""Images as one tensor, their division into parts, and the batches drawn from them."""

from bpl.data.batches import POLICIES, Share, augment, batches, normalise
from bpl.data.catalog import CARDS, Archive, Card, DataError
from bpl.data.download import download
from bpl.data.image_set import ImageSet, load_images
from bpl.data.packed import pack_images
from bpl.data.source import source_of
from bpl.data.splits import Split, make_split, read_split, write_split

__all__ = [
    "CARDS",
    "POLICIES",
    "Archive",
    "Card",
    "DataError",
    "ImageSet",
    "Share",
    "Split",
    "augment",
    "batches",
    "download",
    "load_images",
    "make_split",
    "normalise",
    "pack_images",
    "read_split",
    "source_of",
    "write_split",
]

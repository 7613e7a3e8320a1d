"""The data sets by name: one card each with the facts that loading, splitting, downloading and citing need.

A fact that could not be checked is absent (``None`` or empty) instead of guessed.
"""

from dataclasses import dataclass
from pathlib import Path

from bpl.names import is_plain

LARGEST_IMAGE = 1024  # pixels of height and width, in training and where images are classified


class DataError(ValueError):
    """Something about the images, the split or the download is wrong; the message is one sentence for the user."""


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Args:
        url: Where it is, pinned to a commit of the mirror.
        md5: Hex digest recorded by torchgeo.
        sha256: Hex digest recorded by later versions of torchgeo, where known.
        size: Bytes, where known.
    """

    url: str
    md5: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Card:
    """What is known about one data set.

    Args:
        name: The name used in configs, records and on the command line.
        title: The name used in prose.
        classes: Class folder names, sorted; ``None`` where the folders found define them.
        images_total: Number of images of the set that this name stands for; ``None`` where copies differ.
        licence: Terms of use, in a few words.
        citation: The paper to cite.
        home: Where the authors publish it, as an address or in words.
        mean: Per-channel mean of the pixels, 0..1; ``None``: computed from the images loaded.
        std: Per-channel standard deviation of the pixels, 0..1; ``None``: computed from the images loaded.
        folders: Where the class folders lie below a data root, most specific first.
        archives: What ``download`` fetches.
        same_pixels: Groups of images (``class/stem``) that show the same pixels and must share a side of any split.
        share: The name under which an incomplete copy of this set is to be run; ``None``: an incomplete copy is only
            remarked upon.
        note: One more fact that readers of a table should know.
    """

    name: str
    title: str
    classes: tuple[str, ...] | None
    images_total: int | None
    licence: str
    citation: str
    home: str
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    folders: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    same_pixels: tuple[tuple[str, ...], ...] = ()
    share: str | None = None
    note: str = ""


def _names(text: str) -> tuple[str, ...]:
    """Class names, written with spaces between them."""
    return tuple(text.split())


_UCM_CLASSES = _names(
    """agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway golfcourse
    harbor intersection mediumresidential mobilehomepark overpass parkinglot river runway sparseresidential storagetanks
    tenniscourt"""
)

_NWPU_CLASSES = _names(
    """airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland cloud
    commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor industrial_area
    intersection island lake meadow medium_residential mobile_home_park mountain overpass palace parking_lot railway
    railway_station rectangular_farmland river roundabout runway sea_ice ship snowberg sparse_residential stadium
    storage_tank tennis_court terrace thermal_power_station wetland"""
)

_NWPU_21_CLASSES = _names(
    """airplane airport beach circular_farmland commercial_area dense_residential desert forest freeway industrial_area
    island lake medium_residential mobile_home_park mountain rectangular_farmland river ship sparse_residential stadium
    wetland"""
)

_AID_CLASSES = _names(
    """Airport BareLand BaseballField Beach Bridge Center Church Commercial DenseResidential Desert Farmland Forest
    Industrial Meadow MediumResidential Mountain Park Parking Playground Pond Port RailwayStation Resort River School
    SparseResidential Square Stadium StorageTanks Viaduct"""
)

_NWPU_FACTS = {
    "licence": "distributed by its authors for research; cite, do not redistribute",
    "citation": "G. Cheng, J. Han, X. Lu. Remote Sensing Image Scene Classification: Benchmark and State of the Art. "
    "Proceedings of the IEEE 105(10), 2017. doi:10.1109/JPROC.2017.2675998",
    "home": "http://www.escience.cn/people/JunweiHan/NWPU-RESISC45.html",
    # From the released BPL code.
    "mean": (0.36752758, 0.38054053, 0.3431953),
    "std": (0.14521813, 0.13548799, 0.13197055),
    "folders": ("NWPU-RESISC45", "resisc45/NWPU-RESISC45", "resisc45"),
    "archives": (
        Archive(
            url="https://huggingface.co/datasets/isaaccorley/resisc45/resolve/"
            "883edc0eee77b2c84225472f10f126e3ed83fa6e/NWPU-RESISC45.zip",
            md5="75206b2e16446591afa88e2628744886",
            sha256="beeecd0b63656290ae6d65cf7763185b0c1c4c54a753ef8088d6fba3faaf1f53",
        ),
    ),
}

_ALL_CARDS = (
    Card(
        name="ucm",
        title="UC Merced Land Use",
        classes=_UCM_CLASSES,
        images_total=2100,
        licence="public domain (USGS National Map imagery)",
        citation="Y. Yang, S. Newsam. Bag-Of-Visual-Words and Spatial Extensions for Land-Use Classification. "
        "ACM SIGSPATIAL GIS, 2010. doi:10.1145/1869790.1869829",
        home="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        # From the released BPL code.
        mean=(0.48422759, 0.49005176, 0.45050278),
        std=(0.17348298, 0.16352356, 0.15547497),
        folders=("UCMerced_LandUse/Images", "UCMerced_LandUse", "ucmerced/UCMerced_LandUse/Images"),
        archives=(
            Archive(
                url="https://huggingface.co/datasets/torchgeo/ucmerced/resolve/"
                "7c5ef3454d9b1cccfa7ccde0c01fc8f00a45909a/UCMerced_LandUse.zip",
                md5="5b7ec56793786b6dc8a908e8854ac0e4",
                sha256="06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb",
            ),
        ),
        same_pixels=(("airplane/airplane01", "airplane/airplane02"),),
        note="44 of the 2,100 images are a little under 256x256 in the original too",
    ),
    Card(
        name="nwpu",
        title="NWPU-RESISC45",
        classes=_NWPU_CLASSES,
        images_total=31500,
        share="nwpu-45",
        note="the whole set, 45 classes of 700 images",
        **_NWPU_FACTS,
    ),
    Card(
        name="nwpu-21",
        title="NWPU-RESISC45, a balanced share of 21 classes",
        classes=_NWPU_21_CLASSES,
        images_total=3675,
        note="21 classes of 175 images; not comparable with results on the whole set",
        **_NWPU_FACTS,
    ),
    Card(
        name="nwpu-45",
        title="NWPU-RESISC45, a long-tailed share of all 45 classes",
        classes=_NWPU_CLASSES,
        images_total=4525,
        note="21 classes of 175 images and 24 classes of 29 to 45; not comparable with results on the whole set",
        **_NWPU_FACTS,
    ),
    Card(
        name="rsd46",
        title="RSD46-WHU",
        classes=None,  # the copies in circulation spell several of the 46 folder names differently
        images_total=None,  # about 117,000
        licence="for research; ask its authors",
        citation="Y. Long, Y. Gong, Z. Xiao, Q. Liu. Accurate Object Localization in Remote Sensing Images Based on "
        "Convolutional Neural Networks. IEEE TGRS 55(5), 2017. doi:10.1109/TGRS.2016.2645610",
        home="https://github.com/RSIA-LIESMARS-WHU/RSD46-WHU",
        folders=("RSD46-WHU", "RSD46"),
        note="46 classes, about 117,000 images; no direct archive is published",
    ),
    Card(
        name="aid",
        title="AID",
        classes=_AID_CLASSES,
        images_total=10000,
        licence="distributed by its authors for research; cite, do not redistribute",
        citation="G.-S. Xia et al. AID: A Benchmark Data Set for Performance Evaluation of Aerial Scene "
        "Classification. IEEE TGRS 55(7), 2017. doi:10.1109/TGRS.2017.2685945",
        home="https://captain-whu.github.io/AID/",
        # Measured over all 10,000 images, shrunk to 128x128.
        mean=(0.39821525, 0.40964797, 0.36904236),
        std=(0.20821890, 0.18657289, 0.18569532),
        folders=("AID", "AID_dataset/AID", "AID/AID"),
        same_pixels=(
            ("Industrial/industrial_203", "Industrial/industrial_205"),
            ("Port/port_183", "Port/port_248"),
            ("Beach/beach_68", "Beach/beach_88", "Beach/beach_356"),
        ),
        note="stands in for RSD46-WHU: the same laboratory and the same kind of imagery",
    ),
    Card(
        name="synthetic",
        title="drawn scenes",
        classes=None,  # bpl.data.synthetic.CLASSES
        images_total=2100,
        licence="MIT, as this repository",
        citation="drawn by bpl.data.synthetic",
        home="drawn when asked for, no files",
        note="21 classes of 100 drawn images; says nothing about accuracy on real scenes",
    ),
)

CARDS: dict[str, Card] = {card.name: card for card in _ALL_CARDS}


def name_of_folder(folder: str | Path) -> str:
    """What images of one's own are called: their folder's name, told apart from those of the known data sets.

    Args:
        folder: The folder that holds one folder of images per class.

    Returns:
        The name in messages, in records and of the folder of their records.

    Raises:
        DataError: A name that no record's place could have: hidden, or not one line of text.
    """
    name = Path(folder).expanduser().resolve().name
    if not is_plain(name) or name.startswith(".") or "\\" in name:
        raise DataError(
            f"the folder of the images is called {name!r}; records lie in a folder of that name, so it must be one "
            "line of text without a backslash, and must not begin with a dot."
        )
    return f"{name}-folder" if name in CARDS else name

"""One example image of each class on a sheet."""

import io
from dataclasses import dataclass

from bpl.data.image_set import ImageSet


@dataclass(frozen=True, repr=False)
class ContactSheet:
    """A sheet of images that a notebook shows.

    Attributes:
        jpeg: the sheet as a JPEG file.
        title: what it shows, in words.
    """

    jpeg: bytes
    title: str

    def _repr_jpeg_(self) -> bytes:
        return self.jpeg

    def __repr__(self) -> str:
        return f"<{self.title}>"


def contact_sheet(
    images: ImageSet, columns: int = 7, most: int = 21, tile: int = 96, quality: int = 82
) -> ContactSheet:
    """The first image of each class, under the class's name.

    Args:
        images: the images.
        columns: images side by side.
        most: classes shown at most, the first ones.
        tile: height and width of an image on the sheet, in pixels.
        quality: of the JPEG, up to 95.

    Returns:
        The sheet.
    """
    from PIL import Image, ImageDraw, ImageFont

    classes = images.classes[:most]
    label, gap = 15, 6
    rows = -(-len(classes) // columns)
    size = (columns * (tile + gap) + gap, rows * (tile + label + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, name in enumerate(classes):
        x = gap + index % columns * (tile + gap)
        y = gap + index // columns * (tile + label + gap)
        pixels = images.images[int((images.labels == index).nonzero()[0])]  # (3, H, W) uint8
        example = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).resize((tile, tile), Image.Resampling.BICUBIC)
        text = name
        while draw.textlength(text, font) > tile:
            text = text[:-2] + "…"
        draw.text((x, y), text, "black", font)
        sheet.paste(example, (x, y + label))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=quality, optimize=True)
    return ContactSheet(buffer.getvalue(), f"one image of each of {len(classes)} classes")

"""What a notebook cell returns so that it is shown as text or as a drawing, the same bytes on every run."""

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Markdown:
    """Markdown that a notebook and the book render, and a terminal prints as it is.

    Attributes:
        text: the Markdown, in MyST's dialect.
    """

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Drawing:
    """An SVG figure.

    Attributes:
        svg: the drawing; the same numbers give the same text.
        title: what it shows, in words, where it cannot be drawn.
    """

    svg: str
    title: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<figure: {self.title}>"

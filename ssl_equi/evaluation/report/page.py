"""What every page of results is made of: one document, captions, strips of pictures, folded tables.

A page is readable on a phone, printable, in light and dark. It needs no network and no JavaScript: style, figures and
images are inside it.
"""

import html
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_equi.errors import UserError, visible
from ssl_equi.evaluation.report.figures import image_data_uri, shrink
from ssl_equi.evaluation.report.style import STYLE
from ssl_equi.evaluation.skipping import described

Sections = dict[str, Callable[[], str]]
"""What draws each section of a page, in order, by a name for messages."""

SMALL_PICTURE_SIDE = 64  # in pixels, of pictures that stand in a row


def page_document(title: str, sections: Sequence[str]) -> str:
    """A whole page, as text: the sections that are not empty, in their order, with the style inside it."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def drawn_sections(sections: Sections) -> list[str]:
    """Sections of HTML in their order.

    One that can't be drawn, whatever the files hold that it is drawn from, is a sentence in its place and a warning:
    the others stay.

    Raises:
        UserError: there is something to mend, such as a library that is missing.
    """
    drawn = []
    for name, draw in sections.items():
        try:
            drawn.append(draw())
        except UserError:
            raise
        except Exception as error:
            note = f"The section {name!r} can't be drawn ({described(error)})"
            warnings.warn(note, stacklevel=2)
            drawn.append(f'<section><p class="muted">{escaped(note)}.</p></section>')
    return drawn


def escaped(value: Any) -> str:
    """A value as text that is safe in HTML, in attributes too, and that can be encoded."""
    return html.escape(visible(str(value)), quote=True)


def captioned_figure(svg: str, caption: str, css_class: str = "") -> str:
    """A drawing with its caption, which is read out in its place."""
    label = escaped(caption)
    return (
        f'<figure class="{css_class}"><div role="img" aria-label="{label}">{svg}</div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def details_table(heading: str, content: Mapping[str, Any]) -> str:
    """A folded table of settings."""
    rows = "".join(
        f"<tr><th scope=row>{escaped(name)}</th><td><code>{escaped(shown_setting(value))}</code></td></tr>"
        for name, value in content.items()
    )
    return (
        f'<details id="{heading.lower().replace(" ", "-")}"><summary>{heading}</summary>'
        f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div></details>'
    )


def picture_strip(pictures: np.ndarray, captions: Sequence[str], name: str) -> str:
    """Pictures uint8 `[k, H, W, 3]` in a row with a caption each; the first one is framed.

    Args:
        name: what the strip is of, for those who hear it.
    """
    cells = []
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        uri = image_data_uri(shrink(picture, SMALL_PICTURE_SIDE))
        css_class = ' class="query"' if place == 0 else ""
        alt = escaped(f"{name}: {caption}" if place == 0 else f"{name}, picture {place}: {caption}")
        cells.append(
            f'<figure{css_class}><img alt="{alt}" src="{uri}"><figcaption>{escaped(caption)}</figcaption></figure>'
        )
    return f'<div class="strip" style="--cells:{len(cells)}">{"".join(cells)}</div>'


def shown_setting(value: Any) -> str:
    """The value of an option as it is shown: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)

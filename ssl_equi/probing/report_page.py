"""What every page of results is made of: one document, captions, strips of pictures, folded tables.

A page is readable on a phone, printable, in light and dark. It needs no network and no JavaScript: style, figures and
images are inside it.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_equi.probing.report_figures import image_data_uri, shrink
from ssl_equi.probing.report_style import STYLE

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


def escaped(value: Any) -> str:
    """A value as text that is safe in HTML, in attributes too."""
    return html.escape(str(value), quote=True)


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

"""What every page of results is made of: one document, sections, captions, strips of pictures, tables of settings.

A page is one file that needs no network: style, figures and images are inside it. Its one script (page.js) sorts,
copies and shows values at once; without it all is there to read.
"""

import base64
import hashlib
import html
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ssl_equi.errors import UserError, described, visible
from ssl_equi.evaluation.report.pictures import image_data_uri, shrink

Sections = Mapping[str, Callable[[], str]]
"""What draws each section of a page, in order, by a name for messages; what has nothing to show returns no text."""

SMALL_PICTURE_SIDE = 64  # in pixels, of pictures that stand in a row


def page_document(title: str, sections: Sequence[str]) -> str:
    """A whole page, as text: the sections that are not empty, in their order, under links to those with a heading."""
    style, script = ((files(__package__) / name).read_text("utf-8").strip() for name in ("page.css", "page.js"))
    # Whatever text from outside may be on the page, the browser runs no other script and opens no connection.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    header, *others = [section for section in sections if section] or [""]
    headings = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join(others))
    links = "".join(f'<a href="#{identity}">{heading}</a> ' for identity, heading in headings)
    contents = f'<nav aria-label="sections">{links}</nav>' if len(headings) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([header, contents, *others])
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def drawn_sections(sections: Sections) -> list[str]:
    """Sections of HTML in their order. Raises UserError if there is something to mend, such as a missing library.

    One that can't be drawn, whatever the files hold that it is drawn from, is a sentence in its place and a warning:
    the others stay.
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


def page_section(identity: str, heading: str, *blocks: str) -> str:
    """A section of HTML blocks under its heading; nothing if there are none."""
    content = "".join(blocks)
    return f'<section id="{identity}"><h2>{heading}</h2>{content}</section>' if content else ""


def figure_grid(figures: Sequence[str], css_class: str = "") -> str:
    """Figures side by side, as many as fit; nothing if there are none."""
    return f'<div class="figures {css_class}">{"".join(figures)}</div>' if figures else ""


def captioned_figure(svg: str, caption: str, css_class: str = "") -> str:
    """A drawing with its caption, which is read out in its place."""
    label = escaped(caption)
    return (
        f'<figure class="{css_class}"><div role="img" aria-label="{label}">{svg}</div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def listed(lines: Sequence[str]) -> str:
    """Sentences as a list in small print; nothing if there are none."""
    return f'<ul class="notes">{"".join(f"<li>{escaped(line)}</li>" for line in lines)}</ul>' if lines else ""


def data_table(css_class: str, head: str, bodies: Sequence[Sequence[str]]) -> str:
    """A table of cells of HTML in a box of its own, which scrolls where it is wider than the page.

    Bodies are groups of rows; a click on a column's head sorts the rows inside their groups.
    """
    groups = "".join(f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody>" for rows in bodies)
    return f'<div class="scroll"><table class="{css_class}"><thead><tr>{head}</tr></thead>{groups}</table></div>'


def settings_table(identity: str, heading: str, settings: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """A folded table of the named settings, a column for each run; a dash where a run does not say."""
    head = "".join(f'<th scope="col">{escaped(run)}</th>' for run in ("", *settings)) if len(settings) > 1 else ""
    rows = [
        f'<th scope="row">{escaped(name)}</th>'
        + "".join(
            f"<td><code>{escaped(shown_setting(found.get(name, '-')))}</code></td>" for found in settings.values()
        )
        for name in names
    ]
    return f'<details id="{identity}"><summary>{heading}</summary>{data_table("plain", head, [rows])}</details>'


def picture_strip(pictures: np.ndarray, captions: Sequence[str], name: str) -> str:
    """Pictures uint8 `[k, H, W, 3]` in a row with a caption each; the first one is framed. The name is read out."""
    cells = []
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        uri = image_data_uri(shrink(picture, SMALL_PICTURE_SIDE))
        css_class = ' class="query"' if place == 0 else ""
        alt = escaped(f"{name}: {caption}" if place == 0 else f"{name}, picture {place}: {caption}")
        cells.append(
            f'<figure{css_class}><img alt="{alt}" src="{uri}"><figcaption title="{escaped(caption)}">'
            f"{escaped(caption)}</figcaption></figure>"
        )
    return f'<div class="strip" style="--cells:{len(cells)}">{"".join(cells)}</div>'


def shown_setting(value: Any) -> str:
    """The value of an option as it is shown: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)

"""What every page of results is made of: one document without network or JavaScript, captions, folded tables."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_equi.probing.report_style import STYLE


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


def shown_setting(value: Any) -> str:
    """The value of an option as it is shown: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)

"""Pages of plain HTML, which any browser opens from a folder, without a server."""

import html
from collections.abc import Sequence

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 84em; margin: 2em auto; padding: 0 1em; }
.told { max-width: 60em; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: normal; vertical-align: top; }
th, td { padding: 0.1em 1.5em 0.1em 0; border-bottom: 1px solid #ddd; }
img { max-width: 100%; margin-top: 1em; }
"""


def whole_page(title: str, parts: Sequence[str]) -> str:
    """The text of a page: the title, in the window's bar too, and below it parts that are HTML."""
    head = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{as_html(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{as_html(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body>\n</html>\n"])


def as_html(text: str) -> str:
    """A text as it stands in HTML; of a file's name that is no UTF-8 too."""
    return html.escape(text.encode(errors="backslashreplace").decode())

"""The HTML page of ``layerfs report``: one file that opens anywhere, also offline; it loads nothing from elsewhere.

All data is one JSON document inside the page; names of files are hostile and reach the page as text only.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["report_page"]


def report_page(data: dict[str, Any]) -> str:
    """Return the page for what :mod:`layerfs_cli.verb.report` has gathered."""
    # "<" would let a file name end the script; JSON knows it by its number too.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return files("layerfs_cli").joinpath("report_page.html").read_text("utf-8").replace("@DATA@", text)

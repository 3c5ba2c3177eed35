"""Jupyter notebooks as text: their cells in order."""

import json
from collections.abc import Iterator
from typing import Any

from data import storage
from data.document import Record
from data.readers import shapes
from data.unpacking import whole


def read(path: str) -> Iterator[Record]:
    """Reads a notebook of any version of nbformat as one record.

    Its text is the cells in order, with empty lines between: Markdown and raw text as they are,
    code between lines of ``` with its language. Outputs are left out.

    Args:
        path: local path or object-store URI, packed or not.

    Yields:
        One record; `language` is that of the code. A file that is no notebook is broken.

    Raises:
        OSError: the file cannot be opened, or is damaged or too long.
    """
    with storage.open_plain(path) as stream, whole(stream) as content:
        try:
            yield _record(json.loads(content.decode("utf-8-sig")))
        except (ValueError, RecursionError) as error:
            yield Record(1, "", f"no notebook: {error}")


def _record(notebook: Any) -> Record:
    if not isinstance(notebook, dict):
        raise ValueError(f"a JSON {type(notebook).__name__}, not an object")
    language = _language(notebook.get("metadata"))
    # Until version 3, cells are on worksheets, and code is under another name.
    sheets = notebook.get("worksheets")
    sheets = sheets if isinstance(sheets, list) else [notebook]
    cells = [cell for sheet in sheets for cell in _cells(sheet)]
    texts = (_text(cell, language) for cell in cells)
    meta = {"num_cells": len(cells)}
    return Record(1, "\n\n".join(filter(None, texts)), language=language, meta=meta)


def _cells(sheet: Any) -> list[dict]:
    cells = sheet.get("cells") if isinstance(sheet, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("its cells are no list of objects")
    return cells


def _language(metadata: Any) -> str:
    for key, inner in (("language_info", "name"), ("kernelspec", "language")):
        found = metadata.get(key) if isinstance(metadata, dict) else None
        if isinstance(found, dict) and isinstance(found.get(inner), str):
            return found[inner].lower()
    return "python"


def _text(cell: dict, language: str) -> str:
    source = cell.get("source", cell.get("input"))
    text = ("".join(source) if isinstance(source, list) else shapes.words(source)).strip("\n")
    if cell.get("cell_type") == "heading":
        return f"# {text}"
    is_code = cell.get("cell_type") == "code" and text.strip()
    return f"```{language}\n{text}\n```" if is_code else text

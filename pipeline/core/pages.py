"""HTML pages from Jinja2 templates, which lie beside the module that fills them in."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def fill_in(template: Path, **values: Any) -> str:
    """The page that a template makes of `values`; what comes from them is escaped.

    Raises jinja2.UndefinedError when the template uses a name that is not among them.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Without spaces, as the JSON of a page about a cache has megabytes.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template(template.name).render(values)


def data_address(kind: str, content: bytes) -> str:
    """A file as an address that holds all of it, so that a page needs nothing beside it.

    `kind` is its media type, such as image/jpeg.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

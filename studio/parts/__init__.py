"""Parts of the page that Gradio has no component for.

Each is a gr.HTML with a constant template: its script makes nodes from ``props.value`` with textContent. User text in a
template would be run as JavaScript (Gradio expands a template as a template literal) and would lose its backslashes.
A part's event is wired by its name: ``job_list().pick(fn)`` for ``trigger("pick", data)``; fn takes a gr.EventData.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_HERE = Path(__file__).parent
#: Gradio pads what surrounds a gr.HTML, which would set parts off from all other components.
_FLUSH = ".html-container:has(> &) { padding: 0; }\n"


def part(name: str, value: dict[str, Any], **settings: Any) -> Any:
    """A gr.HTML drawn by ``NAME.js`` and ``NAME.css`` beside this file, from a value of plain data.

    A function, not a subclass: Gradio writes a .pyi file beside the source of every subclass of a component.
    """
    script = "\n".join((_HERE / f"{file}.js").read_text(encoding="utf-8") for file in ("make", name))
    return gr.HTML(
        value=value,
        html_template=f'<div class="{name}"></div>',
        css_template=_FLUSH + (_HERE / f"{name}.css").read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        **settings,
    )

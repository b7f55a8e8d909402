"""Names of motion module weights, both ways.

Original (guoyww/AnimateDiff): ``down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.
attention_blocks.0.to_q.weight``; diffusers: ``down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.weight``.
The positional encoding stands twice in a block of the original, once in diffusers. A layer's path is the name of its
weight without ``.weight``, and is translated by the same functions.
"""

from __future__ import annotations

import re

_PLACE = r"(?P<place>(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.motion_modules\.\d+\.)"
_ORIGINAL = re.compile(_PLACE + r"temporal_transformer\.(?P<part>.+)")
_DIFFUSERS = re.compile(_PLACE + r"(?P<part>.+)")
_BLOCK = r"(transformer_blocks\.\d+\.)"
_ENCODING = re.compile(_BLOCK + r"attention_blocks\.[01]\.pos_encoder\.pe")
_OWN_ENCODING = re.compile(_BLOCK + r"pos_embed\.pe")
#: Everything else that a motion module consists of, in original names.
_PART = re.compile(
    r"(?:norm|proj_in|proj_out|transformer_blocks\.\d+\."
    r"(?:attention_blocks\.[01]\.(?:to_[qkv]|to_out\.0)|norms\.[01]|ff_norm|ff\.net\.(?:0\.proj|2)))"
    r"(?:\.weight|\.bias)?"
)
_RENAMED = (
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0", "norm1"),
    ("norms.1", "norm2"),
    ("ff_norm", "norm3"),
)


def diffusers_name(original: str) -> str | None:
    """diffusers' name of a weight or layer; None when `original` is not a name of the original's."""
    match = _ORIGINAL.fullmatch(original)
    if match is None:
        return None
    place, part = match["place"], match["part"]
    if encoding := _ENCODING.fullmatch(part):
        return f"{place}{encoding[1]}pos_embed.pe"
    if not _PART.fullmatch(part):
        return None
    for theirs, ours in _RENAMED:
        part = re.sub(_BLOCK + re.escape(theirs), rf"\g<1>{ours}", part)
    return place + part


def original_names(name: str) -> tuple[str, ...]:
    """The original's names of a weight or layer: two of a positional encoding, one of all else; () when `name` is
    none of a motion module's in diffusers' naming."""
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        return ()
    place, part = match["place"] + "temporal_transformer.", match["part"]
    if encoding := _OWN_ENCODING.fullmatch(part):
        return tuple(f"{place}{encoding[1]}attention_blocks.{number}.pos_encoder.pe" for number in (0, 1))
    for theirs, ours in _RENAMED:
        part = re.sub(_BLOCK + re.escape(ours), rf"\g<1>{theirs}", part)
    return (place + part,) if diffusers_name(place + part) == name else ()

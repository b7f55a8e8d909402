"""What AnimateDiff reads of other trainers: ``python -m trainers.families.animatediff.compat [FILE or -]``, or
``... compat swift --sft_type lora --csv_path ...`` with swift's own arguments. No torch.
"""

from __future__ import annotations

import sys
from typing import Any

from trainers.families.animatediff import compat_guoyww, compat_swift, compat_tumurzakov
from trainers.foreign import Foreign, main, the_only
from trainers.settings import ConfigError, parse_yaml


def read_foreign(text: str) -> Foreign | None:
    """YAML of tumurzakov/AnimateDiff or guoyww/AnimateDiff, or a command of swift, in our words; None for anything
    else. ConfigError when it is one of these, but cannot be meant."""
    return the_only(text, _read)


def _read(text: str) -> Foreign | None:
    try:
        data = _keyed(parse_yaml(text.expandtabs(2)))  # YAML itself allows no tab where people put one
    except ConfigError:
        return compat_swift.read(text)
    if "family" in data:  # a config of Dailies
        return None
    if compat_guoyww.knows(data):
        return compat_guoyww.translate(data)
    if compat_tumurzakov.knows(data):
        return compat_tumurzakov.translate(data)
    return compat_swift.read(text)


def _keyed(data: Any) -> Any:
    """The same with texts for keys: YAML takes a number, a date or nothing for one as well."""
    return {str(key): _keyed(value) for key, value in data.items()} if isinstance(data, dict) else data


if __name__ == "__main__":
    sys.exit(main("animatediff", read_foreign, {"swift": compat_swift.from_arguments}))

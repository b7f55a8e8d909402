"""Errors of the system and of libraries in the words of a person. No torch."""

from __future__ import annotations

import errno
import os
import re

_WORDS = {
    errno.EACCES: "permission is denied; give yourself the right to it, or choose another place",
    errno.EPERM: "it is not allowed; give yourself the right to it, or choose another place",
    errno.EROFS: "the disk can only be read; choose another place",
    errno.ENOSPC: "no space is left on the disk; make room",
    errno.EDQUOT: "no space is left to you on the disk; make room",
    errno.EFBIG: "a file grew larger than the disk or a limit allows; choose another place or raise it (ulimit -f)",
    errno.EIO: "the disk has failed; look after it, or choose another one",
    errno.ENOENT: "it does not exist",
    errno.EEXIST: "there is something of that name already; choose another name, or remove it",
    errno.EISDIR: "it is a folder, where a file is needed",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; close other programs, or raise the limit (ulimit -n)",
}
#: As Python tells a number within a longer text, and as libraries in Rust do.
_NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")


def why(error: BaseException) -> str:
    """What went wrong, and what can be done, without a number and without a file: whoever tells it has named that.

    Of anything but an error of the system, the first line of what it says.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno) or str(error.strerror or said)
    if found := _NUMBER.search(said):
        number = int(found[1] or found[2])
        return _WORDS.get(number) or os.strerror(number)
    return said


def named(error: BaseException) -> str:
    """An error of the system with the file that it names; of any other, all that it says."""
    if not isinstance(error, OSError):
        return str(error)
    return why(error) if error.filename is None else f"{error.filename} cannot be used: {why(error)}"

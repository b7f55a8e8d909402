"""Files of a dataset on the Hugging Face Hub, kept where the Hub's own client keeps them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from trainers.data.clips import DatasetError, NotHereYet

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def fetched(repository: str, patterns: Sequence[str], *, download: bool) -> Path:
    """The folder of a dataset with the files that match in it: of that id, or DatasetError in one sentence.

    download: fetch those that are not on this machine, which may take long; else NotHereYet where one is not.
    """
    if not _ID.fullmatch(repository):
        raise DatasetError(
            f"{repository} does not exist, and is no id of a dataset on the Hugging Face Hub (such as owner/name)"
        )
    return _downloaded(repository, tuple(patterns)) if download else _kept(repository, patterns)


@functools.lru_cache(maxsize=64)
def _downloaded(repository: str, patterns: tuple[str, ...]) -> Path:
    """Asked once in a process, so that a run sees one state of the dataset from beginning to end."""
    from huggingface_hub import errors, snapshot_download

    cut_off = getattr(errors, "XetDownloadError", errors.HfHubHTTPError)  # earlier clients do not have it
    where = f"there is no folder or file {repository} on this machine, and"
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{repository}"
        raise DatasetError(
            f"dataset {repository} is gated on the Hugging Face Hub; accept its terms at {page} and log in with "
            "hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DatasetError(
            f"{where} no dataset of that name on the Hugging Face Hub; correct dataset.path, or log in with hf auth "
            "login if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise DatasetError(
            f"{where} the Hugging Face Hub cannot be reached for it; give a folder, or fetch the dataset while there "
            "is a network"
        ) from error
    except (errors.HTTPError, cut_off, OSError, ValueError) as error:  # type: ignore[attr-defined]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DatasetError(f"dataset {repository} cannot be fetched from the Hugging Face Hub: {reason}") from error


def _kept(repository: str, patterns: Sequence[str]) -> Path:
    """What has been fetched before."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns), local_files_only=True)
        )
    except errors.LocalEntryNotFoundError as error:
        raise NotHereYet(
            f"{repository} is no folder on this machine; the run will look for it on the Hugging Face Hub and fetch it"
        ) from error
    except errors.HFValidationError as error:
        raise DatasetError(f"{repository} is no id of a dataset on the Hugging Face Hub: {error}") from error

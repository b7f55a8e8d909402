"""prepared: videos that another trainer has encoded already, each with ``a.latent.pt`` and ``a.embed.pt`` beside it.

So Genmo's fine-tuner and the one built on diffusers leave them. What the two files hold is the family's to say: see
`ModelFamily.prepared`. The caption in ``a.txt`` is only shown; what trains stands in the embedding.
"""

from __future__ import annotations

from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.formats.sidecar import files_of, place_of
from trainers.data.originals import Entry, first

LATENT, EMBED = ".latent.pt", ".embed.pt"
_VIDEOS = (".mp4", ".mov")
#: What was decoded again, to be looked at, beside the video that it came from.
_AGAIN = ".recon.mp4"


def beside(video: Path) -> tuple[Path, Path]:
    """A video's latents and embeddings. DatasetError where one is not there."""
    both = video.with_suffix(LATENT), video.with_suffix(EMBED)
    lacking = [file.name for file in both if not file.is_file()]
    if lacking:
        raise DatasetError(
            f"{video.name} is not prepared: there is no {' and no '.join(lacking)} beside it; prepare it again, or set "
            "dataset.format to sidecar to train from the videos themselves"
        )
    return both


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The videos of the folder, numbered names by number, then the rest by name; then what is encoded and has none."""
    folder, files = files_of(config, root)
    there = set(files)
    videos = [path for path in files if path.suffix.lower() in _VIDEOS and not path.name.endswith(_AGAIN)]
    stems = {path.with_suffix("") for path in videos}
    alone = sorted(path for path in files if path.name.endswith((LATENT, EMBED)) and _stem(path) not in stems)
    if not videos and not alone:
        raise DatasetError(f"folder {folder} holds no videos with {LATENT} and {EMBED} files beside them")

    def whole(video: Path) -> bool:
        return video.with_suffix(LATENT) in there and video.with_suffix(EMBED) in there

    taken = first(sorted(videos, key=place_of(folder)), whole, config.max_clips)
    return [
        *(Entry(path, _caption(path.with_suffix(".txt")), path.relative_to(folder).as_posix()) for path in taken),
        *(_without_video(path, folder) for path in alone),
    ]


def _stem(path: Path) -> Path:
    """The path of a latent or an embedding up to its ending."""
    return path.with_name(path.name.removesuffix(LATENT).removesuffix(EMBED))


def _caption(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _without_video(path: Path, folder: Path) -> Entry:
    video = path.with_name(f"{_stem(path).name}.mp4")
    problem = f"{path.name} has no {video.name} beside it; put the video there again, or remove the file"
    return Entry(video, "", path.relative_to(folder).as_posix(), problem=problem)

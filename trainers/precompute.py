"""Clips and captions -> what the denoiser trains on: encoded once and cached, or at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from trainers.data.cache import TensorCache, cache_key
from trainers.data.loader import READING, Sample, read_pixels
from trainers.families.base import VideoModel
from trainers.noise import Draws

#: Called with (done, total) while encoding; may raise to stop.
Report = Callable[[int, int], None]

#: Tensors by name, without a batch dimension.
Tensors = dict[str, torch.Tensor]
#: A sample as the disk gives it: encoded; encoded elsewhere, with its prompt; or pixels (f, 3, h, w) that are
#: still to be encoded.
Read = Tensors | tuple[Tensors, Tensors] | torch.Tensor


class Encoded:
    """Gives batches of encoded samples. With a cache, encoders are not even loaded once everything is there.

    prepared: every sample is encoded already, clip and caption, so that nothing is encoded here and nothing cached.
    """

    def __init__(
        self, model: VideoModel, family: str, folder: Path | None, seed: int, *, prepared: bool = False
    ) -> None:
        self._model, self._family, self._seed, self._prepared = model, family, seed, prepared
        self._cache = TensorCache(folder) if folder and not prepared else None
        self._texts: dict[str, Tensors] = {}

    def prepare(self, samples: Sequence[Sample], texts: Iterable[str], report: Report) -> None:
        """Encode what is not in the cache yet. An interrupted preparation goes on where it stopped."""
        if self._prepared:
            self._encode_texts([""])  # what dropout substitutes
            self._model.release("encoders")
            return
        unique = list(dict.fromkeys(["", *texts]))
        for start in range(0, len(unique), 16):
            self._encode_texts(unique[start : start + 16])
        if self._cache is None:
            return
        wanted = {self._video_key(sample): sample for sample in samples}  # copies of a clip are encoded once
        missing = {key: sample for key, sample in wanted.items() if key not in self._cache}
        for done, (key, sample) in enumerate(missing.items()):
            report(done, len(missing))
            self._cache.put(key, self._encode_video(sample, read_pixels(sample)))
        if missing:
            report(len(missing), len(missing))
        self._model.release("encoders")

    def read(self, samples: Sequence[Sample]) -> list[Read]:
        """What the disk holds of samples: encoded, or as pixels. May be called in another thread."""
        return [self._read(sample) for sample in samples]

    def batch(self, samples: Sequence[Sample], read: Sequence[Read] | None = None) -> Tensors:
        """Samples of one shape as a batch on the CPU, under the names of `VideoModel.example`; with the clip's frames
        per second, and how many of its frames lie between two of the sample's."""
        encoded = [
            self._encoded(sample, found) for sample, found in zip(samples, read or self.read(samples), strict=True)
        ]
        videos, prompts = [video for video, _ in encoded], [prompt for _, prompt in encoded]
        batch = {name: torch.stack([video[name] for video in videos]) for name in videos[0]}
        batch["clip_fps"] = torch.tensor([sample.clip.fps for sample in samples])
        batch["frame_stride"] = torch.tensor([sample.stride for sample in samples])
        empty = self._text("")
        for name in empty:
            batch[name] = torch.stack([prompt[name] for prompt in prompts])
            batch[f"null_{name}"] = empty[name].expand_as(batch[name])
        return batch

    def video(self, sample: Sample) -> Tensors:
        """One sample's clip as the family encoded it, without a batch dimension, on the CPU."""
        return self._encoded_video(sample, self._read(sample))

    def _read(self, sample: Sample) -> Read:
        if self._prepared:
            return self._model.read_prepared(sample.file)
        return self._cached(sample) or read_pixels(sample)

    def _encoded(self, sample: Sample, found: Read) -> tuple[Tensors, Tensors]:
        """A sample's clip and prompt."""
        if isinstance(found, tuple):
            return found
        return self._encoded_video(sample, found), self._text(sample.clip.text)

    def _encoded_video(self, sample: Sample, found: Read) -> Tensors:
        if isinstance(found, torch.Tensor):
            return self._encode_video(sample, found)
        return found[0] if isinstance(found, tuple) else found

    def _cached(self, sample: Sample) -> Tensors | None:
        return self._cache.get(self._video_key(sample)) if self._cache is not None else None

    def _encode_video(self, sample: Sample, pixels: torch.Tensor) -> Tensors:
        draws = Draws.seeded(self._seed, "encode", sample.clip.sha256, *sample.indices)
        encoded = self._model.encode_video(pixels[None], draws)
        return {name: tensor[0].contiguous() for name, tensor in encoded.items()}  # as the cache gives it back

    def _text(self, text: str) -> Tensors:
        if text not in self._texts:
            self._encode_texts([text])
        return self._texts[text]

    def _encode_texts(self, texts: Sequence[str]) -> None:
        missing = []
        for text in texts:
            cached = self._cache.get(self._text_key(text)) if self._cache else None
            if cached is None:
                missing.append(text)
            else:
                self._texts[text] = cached
        if not missing:
            return
        encoded = self._model.encode_prompt(missing)
        for index, text in enumerate(missing):
            self._texts[text] = {name: tensor[index].clone() for name, tensor in encoded.items()}
            if self._cache is not None:
                self._cache.put(self._text_key(text), self._texts[text])

    @cached_property
    def _video_encoder(self) -> str:
        return self._model.fingerprint("video")

    @cached_property
    def _prompt_encoder(self) -> str:
        return self._model.fingerprint("prompt")

    def _video_key(self, sample: Sample) -> str:
        return cache_key(
            family=self._family,
            encoder=self._video_encoder,
            clip=sample.clip.sha256,
            reading=READING,
            indices=sample.indices,
            size=(sample.height, sample.width),
            stretch=sample.stretch,
            flip=sample.flip,
            **_unusual(sample),
        )

    def _text_key(self, text: str) -> str:
        return cache_key(family=self._family, encoder=self._prompt_encoder, text=text)


def _unusual(sample: Sample) -> dict[str, object]:
    """What else tells a sample's pixels. Only what is not as usual, so that what was cached before there was such a
    thing stays good."""
    names = ("cut", "piece", "bars", "decoded", "smooth")
    return {name: value for name in names if (value := getattr(sample, name))}

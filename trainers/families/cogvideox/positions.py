"""Where each patch of a clip stands, for rotary positions: cosines and sines by patch, in order time, height, width.

F frames of latents, h x w patches; a head's width is parted into a quarter for time and three eighths for each side.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from trainers.families.cogvideox.facts import Facts

CropRegion = tuple[tuple[int, int], tuple[int, int]]


def crop_region(grid: tuple[int, int], base: tuple[int, int]) -> CropRegion:
    """((top, left), (bottom, right)) of a grid of patches (h, w), enlarged or shrunk to fit into the middle of `base`.

    CogVideoX 1.0 interpolates other sizes into the frame that it was trained on.
    """
    region: CropRegion = get_resize_crop_region_for_grid(grid, base[1], base[0])
    return region


def rotary(
    facts: Facts, head_dim: int, frames: int, grid: tuple[int, int], how: Literal["pipeline", "integers"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines, sines), each (F * h * w, head_dim) float32.

    pipeline: as diffusers' pipelines: a crop region of the base's frame for 1.0, plain integers for 1.5, whose patches
    are `patch_size_t` latent frames long. integers: integers for both.
    """
    if facts.patch_size_t is not None:
        frames, how = -(-frames // facts.patch_size_t), "integers"
    if how == "integers":
        return get_3d_rotary_pos_embed(head_dim, None, grid, frames, grid_type="slice", max_size=grid)  # type: ignore[no-any-return]
    base = facts.sample_height // facts.patch_size, facts.sample_width // facts.patch_size
    return get_3d_rotary_pos_embed(head_dim, crop_region(grid, base), grid, frames)  # type: ignore[no-any-return]

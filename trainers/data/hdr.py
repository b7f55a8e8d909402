"""HDR pictures as players show them on a screen without HDR: PQ or HLG in BT.2020 to BT.709. numpy only; no torch.

Light is measured in the white of an SDR picture, which BT.2408 puts at 203 cd/m2. What is darker than `_KNEE` of it
keeps its brightness; what is brighter bends into what is left below white, the peak of 1000 cd/m2 at white itself.
"""

from __future__ import annotations

import functools

import numpy as np

#: FFmpeg's numbers for the transfer curves of HDR.
PQ, HLG = 16, 18
NAMES = {PQ: "PQ", HLG: "HLG"}

_WHITE, _PEAK = 203.0, 1000.0  # cd/m2
_KNEE = 0.6
#: BT.2020 to BT.709 in linear light (BT.2087, from the primaries), and the luminance of BT.2020.
_TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_STEPS = 4096  # of the last table; a step there is less than one of 8 bits from black on, as its square root is


def tone_mapped(picture: np.ndarray, transfer: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB for a gamma of 2.4 from (h, w, 3) uint16 R'G'B' of the transfer curve PQ or HLG.

    Rows are worked on in bands, which stay in the processor's cache.
    """
    out = np.empty(picture.shape, np.uint8)
    rows = max(1, 65536 // picture.shape[1])
    for top in range(0, len(picture), rows):
        out[top : top + rows] = _band(picture[top : top + rows], transfer)
    return out


def _band(picture: np.ndarray, transfer: int) -> np.ndarray:
    light = _linear(transfer)[picture]
    if transfer == HLG:
        # BT.2100's system gamma of 1.2 at 1000 cd/m2, on the luminance of the scene
        light *= (_PEAK / _WHITE) * np.maximum(light @ _LUMINANCE, 1e-6)[..., None] ** np.float32(0.2)
    light = light @ _TO_709.T
    # Colours that BT.709 does not have lie below zero in one channel: as much white is mixed in as takes them back.
    luminance = np.maximum(light @ np.array([0.2126, 0.7152, 0.0722], np.float32), 0)
    lowest = light.min(-1)
    share = np.where(lowest < 0, luminance / np.maximum(luminance - lowest, 1e-6), 1)
    light = luminance[..., None] + (light - luminance[..., None]) * share[..., None]
    brightest = np.maximum(light.max(-1), 1e-6)
    light *= (_bent(brightest) / brightest)[..., None]  # all channels alike, so that no colour turns
    steps = np.sqrt(np.clip(light, 0, 1, out=light), out=light) * np.float32(_STEPS - 1) + np.float32(0.5)
    mapped: np.ndarray = _gamma()[steps.astype(np.uint16)]
    return mapped


def _bent(light: np.ndarray) -> np.ndarray:
    """The soft shoulder: as it is up to the knee, then Reinhard's curve, which meets white at the peak."""
    room = 1 - _KNEE
    top = (_PEAK / _WHITE - _KNEE) / room
    over = np.clip((light - _KNEE) / room, 0, top)
    bent: np.ndarray = np.minimum(light, _KNEE) + room * over * (1 + over / top**2) / (1 + over)
    return bent


@functools.cache
def _linear(transfer: int) -> np.ndarray:
    """For each of the 65536 values: linear light. PQ (SMPTE ST 2084): of the display, 1 being SDR's white. HLG (ARIB
    STD-B67): of the scene, from 0 to 1."""
    value = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = value ** (1 / m2)
        light = 10_000 / _WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    return light.astype(np.float32)


@functools.cache
def _gamma() -> np.ndarray:
    """For each of `_STEPS` square roots of light: 8 bits for a display of gamma 2.4 (BT.1886)."""
    light = np.linspace(0, 1, _STEPS) ** 2
    return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)

"""Audio files as inputs: waveforms between -1 and 1 at one sample rate."""

from __future__ import annotations

import re
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.data.items import Items
from engine.errors import EngineError, one_line

WAV = (".wav", ".wave")
OTHERS = (".flac", ".ogg", ".mp3", ".aiff", ".aif")
SUFFIXES = (*WAV, *OTHERS)
# Hours of sound in one file are not an item.
_LONGEST = 2**27
# The filter that resamples has twenty taps for each step between two rates.
_STEEPEST = 10**6
# Floats stand a little above 1 where a recording is loud; further up they are integers in disguise.
_LOUDEST = 16.0
# What is written into a header where the length is not known yet, as by a pipe.
_UNKNOWN = 2**32 - 2**16


@dataclass(frozen=True)
class Take:
    """How a file becomes an input: ``rate`` in samples a second, None for that of the file; ``length`` samples are kept, the rest is cut
    or filled with silence, None for all; ``channels`` keeps them, (C, T), ``mono`` their mean, (1, T), ``flat`` the mean as (T,)."""

    rate: int | None
    length: int | None
    form: str = "channels"

    def read(self, path: Path) -> Tensor:
        """float32 (C, T), or (T,). Raises EngineError where the file cannot be read."""
        rate, sound = _read(path)
        if self.form != "channels":
            sound = sound.mean(0, keepdims=True)
        if self.rate is not None and rate != self.rate:
            from scipy.signal import resample_poly

            shared = gcd(rate, self.rate)
            up, down = self.rate // shared, rate // shared
            if max(up, down) > _STEEPEST or sound.shape[1] * up > _LONGEST * down:
                raise EngineError(f"{path} has {rate:,} samples a second, which are not brought to {self.rate:,}: give another --rate")
            sound = resample_poly(sound, up, down, axis=1)
        if self.length is not None:
            sound = np.pad(sound[:, : self.length], ((0, 0), (0, max(0, self.length - sound.shape[1]))))
        found = torch.from_numpy(np.ascontiguousarray(sound, dtype=np.float32))
        return found[0] if self.form == "flat" else found


@dataclass(frozen=True, eq=False)
class AudioItems:
    """Waveforms by path, read when they are asked for; those of one shape can be read together."""

    paths: tuple[Path, ...]
    take: Take

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, places: Sequence[int]) -> Items:
        return Items(torch.stack([self.take.read(self.paths[i]) for i in places]), [None] * len(places))

    def kind(self, place: int) -> Hashable:
        return _shape(self.paths[place], self.take)


@lru_cache(maxsize=65536)
def _shape(path: Path, take: Take) -> tuple[int, ...]:
    return tuple(take.read(path).shape)


def rates(paths: Sequence[Path]) -> dict[int, Path]:
    """The sample rates of the files, each with the first file that has it. Raises EngineError where one cannot be read."""
    found: dict[int, Path] = {}
    for path in paths:
        found.setdefault(_read(path)[0], path)
    return found


def _read(path: Path) -> tuple[int, np.ndarray]:
    """The sample rate, and float32 (C, T) between -1 and 1."""
    if path.suffix.lower() in WAV:
        return _wav(path)
    if find_spec("soundfile") is None:
        raise EngineError(f"{path} needs the package soundfile: `pip install soundfile`, or give .wav files")
    import soundfile

    try:
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:
        raise EngineError(f"{path} cannot be read as audio ({one_line(error, 80)}): replace or remove it") from error
    return _checked(path, int(rate), sound.T)


def _wav(path: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings(record=True) as said:
            # Some are of chunks that are no sound, such as titles.
            warnings.simplefilter("always")
            rate, raw = wavfile.read(path)
    except Exception as error:
        reason = one_line(error, 80) or type(error).__name__
        raise EngineError(f"{path} cannot be read as audio ({reason}): replace or remove it") from error
    for warning in said:
        cut = re.search(r"finished at (\d+) bytes, expected (\d+) bytes", str(warning.message))
        if cut and int(cut[2]) < _UNKNOWN:
            raise EngineError(f"{path} is cut short: it has {int(cut[1]):,} of {int(cut[2]):,} bytes: copy it again, or remove it")
    sound = raw[None] if raw.ndim == 1 else raw.T
    if raw.dtype == np.uint8:
        sound = (sound.astype(np.float32) - 128) / 128
    elif raw.dtype.kind == "i":
        # 24 bits stand in the upper bytes of 32.
        sound = (sound / -float(np.iinfo(raw.dtype).min)).astype(np.float32)
    return _checked(path, int(rate), sound)


def _checked(path: Path, rate: int, sound: np.ndarray) -> tuple[int, np.ndarray]:
    if not 0 < sound.shape[1] <= _LONGEST or rate <= 0:
        raise EngineError(f"{path} holds {sound.shape[1]:,} samples at {rate} Hz: give files with sound in them")
    if not np.isfinite(sound).all():
        raise EngineError(f"{path} holds NaN or infinity: replace or remove it")
    if (loudest := float(np.abs(sound).max())) > _LOUDEST:
        raise EngineError(f"{path} holds floats up to {loudest:,.4g}: those of sound are between -1 and 1, divide them")
    return rate, sound.astype(np.float32, copy=False)

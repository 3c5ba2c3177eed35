"""Published weights in fewer bits, undone as they are read: gpt-oss (MXFP4), DeepSeek-V3 (FP8)."""

import numpy as np

from model.interop.safetensors import Tensors

# The sixteen values of a 4-bit float with two bits of exponent and one of mantissa.
# Source: OCP Microscaling Formats (MX) 1.0, table 5.
FP4 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = np.concatenate([FP4, -FP4])
BLOCKS, SCALES, INVERSE = "_blocks", "_scales", "_scale_inv"
FP8_BLOCK = 128  # rows and columns that share a scale


class Unpacked:
    """Tensors as if nothing had been packed: the face of model.interop.safetensors.Tensors."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        there = set(tensors.names())
        scales = {name + SCALES for name in self._cut(BLOCKS)} & there
        scales |= {name + INVERSE for name in there if name + INVERSE in there}
        self._names = [
            name.removesuffix(BLOCKS) if name.removesuffix(BLOCKS) + SCALES in scales else name
            for name in tensors.names()
            if name not in scales
        ]
        self._scales = scales

    def _cut(self, suffix: str) -> list[str]:
        names = (name for name in self._tensors.names() if name.endswith(suffix))
        return [name.removesuffix(suffix) for name in names]

    def names(self) -> list[str]:
        """All names; those of scales are none."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, unpacked."""
        if name + SCALES not in self._scales:
            return self._tensors.shape(name)
        *lead, rows, blocks, half = self._tensors.shape(name + BLOCKS)
        return (*lead, blocks * half * 2, rows)

    def read(self, name: str) -> np.ndarray:
        """A tensor's values, float32.

        Raises:
          ValueError: scales do not fit their tensor, or bytes are packed in another way.
        """
        if name + SCALES in self._scales:
            return self._read_mxfp4(name)
        value = self._tensors.read(name)
        if name + INVERSE in self._scales:
            scale = self._tensors.read(name + INVERSE)
            expected = tuple(-(-size // FP8_BLOCK) for size in value.shape)
            if scale.shape != expected:
                raise ValueError(f"{name}{INVERSE} has shape {scale.shape}, expected {expected}")
            for dim, size in enumerate(value.shape):
                scale = np.repeat(scale, FP8_BLOCK, axis=dim).take(range(size), axis=dim)
            value *= scale
        if value.dtype != np.float32:
            raise ValueError(f"{name} holds {value.dtype}; how these are packed is not known")
        return value

    def _read_mxfp4(self, name: str) -> np.ndarray:
        packed, scale = self._tensors.read(name + BLOCKS), self._tensors.read(name + SCALES)
        if packed.shape[:-1] != scale.shape or packed.shape[-1] != 16:
            raise ValueError(f"{name}{SCALES} has shape {scale.shape} for blocks {packed.shape}")
        value = np.empty((*packed.shape, 2), np.float32)
        value[..., 0], value[..., 1] = FP4[packed & 15], FP4[packed >> 4]
        value *= np.exp2(np.float32(scale) - 127)[..., None, None]
        return value.reshape(*packed.shape[:-2], -1).swapaxes(-1, -2)

"""A picture's pixels where Pillow keeps them: to copy those of a large one takes a quarter of decoding it."""

import ctypes
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

STORED = 4  # bytes of a pixel: red, green, blue, and one that means nothing


class _Array(ctypes.Structure):
    """The head of the Arrow C data interface's `struct ArrowArray`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("length", "nulls", "offset", "n_buffers", "n_children")),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    ]


_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def stored_pixels(picture: Image.Image) -> UInt8[np.ndarray, "height width 4"]:
    """Those of an RGB picture, which must not be changed as long as they are in use.

    By Pillow's Arrow interface, a list of four bytes per pixel; copied where they lie in several pieces, as
    those of pictures beyond 16 MiB do.
    """
    try:
        _, capsule = picture.__arrow_c_array__()
    except ValueError:
        return np.asarray(picture.convert("RGBX"))
    pixels = _Array.from_address(_address(capsule, b"arrow_array"))
    bytes_ = _Array.from_address(pixels.children[0])
    memory = (ctypes.c_uint8 * bytes_.length).from_address(bytes_.buffers[1])
    memory.owner = capsule  # which frees it
    return np.frombuffer(memory, np.uint8).reshape(picture.height, picture.width, STORED)

"""Still pictures to BGR, through Pillow: every depth and colour model, the right way up, no bombs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.decoding import check_picture_size

__all__ = ["PICTURE_SUFFIXES", "read_still_picture"]

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as a picture in a folder, in lower case."""

# Named, because Pillow would also hand PostScript to another program; importing a plug-in registers it.
_PLUG_INS = (
    BmpImagePlugin.BmpImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
_FORMATS = [plug_in.format for plug_in in _PLUG_INS]


def read_still_picture(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode one picture, turned as its EXIF data says.

    Grey becomes BGR, 16 bits are divided by 257 (white stays white), 32-bit integers and floating point are
    refused, transparent parts are laid on black, palettes and CMYK become BGR.

    Args:
        source: A file, or its bytes.

    Returns:
        ``[height, width, 3]`` uint8 BGR.

    Raises:
        SourceError: Not a whole picture of a known kind, or too large; the reason, without a name.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as picture:
            check_picture_size(*picture.size, what="the picture")
            return _to_bgr(picture)
    except SourceError:
        raise
    except UnidentifiedImageError:
        raise SourceError("not a picture of a known kind") from None
    except MemoryError:
        raise SourceError("there is not enough memory for it") from None
    except Exception as error:  # plug-ins raise nearly anything for damaged data
        raise SourceError(str(error) or type(error).__name__) from error


def _to_bgr(picture: Image.Image) -> NDArray[np.uint8]:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        return _grey_to_bgr(np.asarray(picture, dtype=np.uint16) // 257)
    if picture.mode in ("I", "F"):
        return _wide_grey_to_bgr(picture)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        black = Image.new("RGBA", with_alpha.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, with_alpha)
    if picture.mode == "L":
        return _grey_to_bgr(np.asarray(picture))
    # Four times faster than turning the last axis round with numpy.
    return np.asarray(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR), dtype=np.uint8)


def _grey_to_bgr(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(grey.astype(np.uint8, copy=False), cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def _wide_grey_to_bgr(picture: Image.Image) -> NDArray[np.uint8]:
    """Pillow gives 16-bit PGM as 32-bit integers; wider ranges have no agreed white."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.size == 0 or values.min() < 0 or values.max() > 65535:
        raise SourceError("pictures with more than 16 bits a channel have no agreed brightness")
    return _grey_to_bgr(values // 257)

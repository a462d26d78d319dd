"""Open image files of every raster format that Pillow itself decodes, even with damaged metadata."""

from __future__ import annotations

import io
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BLP": (".blp",),
    "BMP": (".bmp",),
    "CUR": (".cur",),
    "DCX": (".dcx",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "FITS": (".fit", ".fits"),
    "FLI": (".flc", ".fli"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "GIF": (".gif",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "IM": (".im",),
    "IPTC": (".iim",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "MSP": (".msp",),
    "PCD": (".pcd",),
    "PCX": (".pcx",),
    "PIXAR": (".pxr",),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
    "TGA": (".icb", ".tga", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
}
"""File extensions of every raster format that Pillow decodes without another program. PostScript would start
Ghostscript; only Windows draws Windows metafiles; Pillow reads no pixels of BUFR, GRIB, HDF5, MPEG and PDF."""

EXTENSIONS = tuple(sorted(ending for endings in ENDINGS.values() for ending in endings))

_NO_PLUGIN = ("MPO",)
"""Formats that Pillow opens as part of another one."""

LARGEST_REPAIR = 256 * 2**20
"""Size limit in bytes for files that are copied without their metadata."""


class NotRegularError(OSError):
    """The path is a pipe, a socket or a device."""


def open_image(path: Path) -> Image:
    """Open an image file; only its header is read until pixels are needed.

    A file with unreadable metadata is opened without it.

    Raises:
        OSError, SyntaxError, ValueError and others of Pillow's: the file is missing, damaged or not a regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # Reading a pipe without a writer blocks forever; /dev/zero fills the memory.
        raise NotRegularError("is a pipe, socket or device; an image file is needed")
    try:
        return _open(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    # Pillow raises almost anything for damaged metadata, as for damaged pixels.
    except Exception as error:
        bare = without_metadata(path)
        if bare is None:
            raise
        try:
            return _open(bare)
        except Exception:  # noqa: S110 the first error says what is wrong with the file
            pass
        raise error


def reopened(image: Image) -> Image | None:
    """Reopen an image's file without metadata; return None if that changes nothing."""
    name = getattr(image, "filename", "")
    bare = without_metadata(Path(name)) if name else None
    return None if bare is None else _open(bare)


def without_metadata(path: Path) -> IO[bytes] | None:
    """Return a copy of a PNG, JPEG or WebP file with only the data its pixels need; None for other or broken files."""
    try:
        if path.stat().st_size > LARGEST_REPAIR:
            return None
        content = path.read_bytes()
        for start, strip in _STRIPS.items():
            if content.startswith(start):
                bare = b"".join(strip(content))
                return io.BytesIO(bare) if len(bare) != len(content) else None
    except (OSError, struct.error, IndexError):
        return None
    return None


def _open(source: Path | IO[bytes]) -> Image:
    from PIL import Image

    # Explicit formats, so that Pillow starts no other program for PostScript content.
    return Image.open(source, formats=[name for name in ENDINGS if name not in _NO_PLUGIN])


def _png(content: bytes) -> Iterator[bytes]:
    """Yield the signature and the chunks that pixels need: critical chunks, which start with a capital, and tRNS."""
    yield content[:8]
    at = 8
    while at + 8 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        kind = content[at + 4 : at + 8]
        if kind[:1].isupper() or kind == b"tRNS":
            yield content[at : at + 12 + size]
        at += 12 + size
        if kind == b"IEND":
            return


def _jpeg(content: bytes) -> Iterator[bytes]:
    """Yield the segments without application data and comments, except Adobe's, which defines the colour space."""
    yield content[:2]
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            break
        (size,) = struct.unpack_from(">H", content, at + 2)
        is_metadata = (0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE)) or marker == 0xFE
        if not is_metadata:
            yield content[at : at + 2 + size]
        at += 2 + size
    yield content[at:]


def _webp(content: bytes) -> Iterator[bytes]:
    """Yield the container without its EXIF, XMP and ICC chunks."""
    if content[8:12] != b"WEBP":
        yield content
        return
    kept, at = [], 12
    while at + 8 <= len(content):
        (size,) = struct.unpack_from("<I", content, at + 4)
        end = at + 8 + size + size % 2
        chunk = content[at:end]
        if chunk[:4] == b"VP8X":
            # Clear the flags of the chunks that are left out: ICC 0x20, EXIF 0x08, XMP 0x04.
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]
        if chunk[:4] not in (b"EXIF", b"XMP ", b"ICCP"):
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    yield b"RIFF" + struct.pack("<I", len(body)) + body


_STRIPS: Mapping[bytes, Callable[[bytes], Iterator[bytes]]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8": _jpeg,
    b"RIFF": _webp,
}

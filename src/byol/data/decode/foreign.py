"""Formats that are known and not read: what a file is, by its first bytes, and what to do with it."""

from io import BytesIO

from PIL import Image

from byol.data.decode.formats import Stream

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # where, what, and what it is
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"NRRD000", "an NRRD file"),
    (344, b"n+1\0", "a NIfTI file"),
    (344, b"ni1\0", "a NIfTI header"),
    (4, b"n+2\0", "a NIfTI file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (512, b"\x89HDF\r\n\x1a\n", "a MATLAB file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"CDF\x01", "a NetCDF file"),
    (0, b"CDF\x02", "a NetCDF file"),
    (0, b"CDF\x05", "a NetCDF file"),
    (0, b"ZISRAWFILE", "a Zeiss CZI file"),
    (0, b"\xda\xce\xbe\x0a", "a Nikon ND2 file"),
    (0, b"\x70\x00\x00\x00", "a Leica LIF file"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file (Olympus OIB, Zeiss ZVI)"),
    (208, b"MAP ", "an MRC file"),
    (0, b"XISF0100", "an XISF file"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"#?RGBE", "a Radiance HDR file"),
    (0, b"\xff\x10\xff\x50", "a JPEG XS file"),
    (0, b"qoif", "a QOI file"),
    (0, b"farbfeld", "a farbfeld file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"P7\n", "a PAM file"),
    (0, b"PF\n", "a colour PFM file"),
    (0, b"PF ", "a colour PFM file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"II\x1a\0\0\0HEAPCCDR", "a camera raw file"),
    (0, b"FUJIFILMCCD-RAW", "a camera raw file"),
    (0, b"IIRO", "a camera raw file"),
    (0, b"IIU\0", "a camera raw file"),
)
REFUSED = "is {}, which byol does not read; save its images as TIFF, PNG or .npy"
HEAD_BYTES = 600  # that `name_of` looks at


def name_of(head: bytes) -> str | None:
    """What a file that begins with `head` is, of the formats that are not read: "a FITS file"; else None."""
    for at, signature, name in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return name
    return None


def refuse(head: bytes) -> str | None:
    """Why a file that begins with `head` is not read, and what to do; None: nothing is known of it."""
    name = name_of(head)
    return None if name is None else REFUSED.format(name)


def describe(stream: Stream) -> str | None:
    """The same of a file in a format that Pillow knows; its pixels are not looked at."""
    stream.seek(0)
    try:
        with Image.open(BytesIO(stream.read())) as image:
            return REFUSED.format(f"in the format {image.format}")
    except Exception:
        return None

"""Recognise formats that byol does not read, by their first bytes, and advise what to do."""

from io import BytesIO

from PIL import Image

from byol.data.decode.formats import Stream

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, format
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
HEAD_BYTES = 600  # number of first bytes that `name_of` needs


def name_of(head: bytes) -> str | None:
    """Return the format of a file that begins with `head`, such as "a FITS file"; None: unknown."""
    for at, signature, name in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return name
    return None


def refuse(head: bytes) -> str | None:
    """Return why byol does not read a file that begins with `head`, and what to do; None: unknown format."""
    name = name_of(head)
    return None if name is None else REFUSED.format(name)


def describe(stream: Stream) -> str | None:
    """Return the same for formats that Pillow recognises, without reading pixels."""
    stream.seek(0)
    try:
        with Image.open(BytesIO(stream.read())) as image:
            return REFUSED.format(f"in the format {image.format}")
    except Exception:
        return None

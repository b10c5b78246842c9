"""Arrays, DICOM, and formats that are not read."""

import io
import itertools
from collections.abc import Iterator

import imagecodecs
import numpy as np
import pydicom
from formats_made import Case, as_wanted, save, values
from PIL import Image
from pydicom.encaps import encapsulate


def array_files() -> Iterator[Case]:
    """`.npy` and `.npz`: types, byte order, layouts."""
    for kind, order, channels in itertools.product(
        ("u1", "u2", "i2", "i4", "f2", "f4", "f8"), "<>", (1, 3, 13)
    ):
        array = values(kind, channels, seed=channels).astype(np.dtype(kind).newbyteorder(order))
        for layout in ("hwc", "chw"):
            if channels == 1 and layout == "hwc":
                stored = array[..., 0]
            else:
                stored = array if layout == "hwc" else np.ascontiguousarray(np.moveaxis(array, 2, 0))
            stream = io.BytesIO()
            np.save(stream, stored)
            name, want = f"{order}{kind} {stored.shape}", as_wanted(array.astype(kind))
            is_unclear = layout == "chw" and channels == 13  # 13 x 33 x 47
            yield Case("NumPy", name, stream.getvalue(), want, must_refuse=is_unclear)
    square = values("u2", 33, seed=1)[:33, :33]
    stream = io.BytesIO()
    np.save(stream, square)
    yield Case("NumPy", "33 x 33 x 33", stream.getvalue(), must_refuse=True)
    stream = io.BytesIO()
    np.savez_compressed(stream, image=values("u2", 3, seed=1))
    yield Case("NumPy", "npz", stream.getvalue(), values("u2", 3, seed=1))


def dicom_files() -> Iterator[Case]:
    """Sign, bits, frames, rescaling and transfer syntaxes; with and without the preamble."""
    group = "DICOM"
    uncompressed = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
    for seed, (kind, bits, syntax, slope) in enumerate(
        itertools.product(("u1", "u2", "i2"), (8, 12, 16), uncompressed, (None, "2.5"))
    ):
        if (
            bits > 8 * np.dtype(kind).itemsize
            or (kind == "i2" and bits != 16)
            or (kind == "u2" and bits == 8)
        ):
            continue
        array = values(kind, 1, seed=seed, bits=bits)[..., 0]
        want = array[..., None] if slope is None else (array[..., None] * 2.5 - 1000).astype("f4")
        data = dicom(array, bits=bits, syntax=syntax, slope=slope)
        yield Case(
            group,
            f"{kind} {bits} bit {syntax[-5:]} {slope=}",
            data,
            as_wanted(want),
            () if slope else ("pydicom",),
        )
    frame = values("u2", 1, seed=3, bits=12)[..., 0]
    bare = dicom(frame, bits=12, syntax=uncompressed[0], preamble=False)
    yield Case(group, "no preamble", bare, frame[..., None])
    yield Case(
        group,
        "explicit, no preamble",
        dicom(frame, bits=12, syntax=uncompressed[1], preamble=False),
        frame[..., None],
    )
    for name, syntax, data in compressed_frames(frame):
        yield Case(group, name, dicom(frame, bits=12, syntax=syntax, encoded=data), frame[..., None])


def compressed_frames(frame: np.ndarray) -> Iterator[tuple[str, str, bytes]]:
    """Name, transfer syntax and bytes."""
    prefix = "1.2.840.10008.1.2.4."
    yield "JPEG Lossless", prefix + "70", imagecodecs.jpeg_encode(frame, bitspersample=12, lossless=True)
    yield "JPEG-LS", prefix + "80", imagecodecs.jpegls_encode(frame)
    yield (
        "JPEG 2000",
        prefix + "90",
        imagecodecs.jpeg2k_encode(frame, level=0, reversible=True, codecformat="j2k", bitspersample=12),
    )


def dicom(
    array: np.ndarray,
    *,
    bits: int,
    syntax: str,
    slope: str | None = None,
    preamble: bool = True,
    encoded: bytes | None = None,
) -> bytes:
    """A secondary capture; its frame may be compressed before."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = array.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * array.itemsize, bits, bits - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    if slope is not None:
        data.RescaleSlope, data.RescaleIntercept = slope, "-1000"
    order = ">" if syntax.endswith("1.2.2") else "<"
    content = array.astype(array.dtype.newbyteorder(order)).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2) if encoded is None else encapsulate([encoded])
    data["PixelData"].VR = "OB" if encoded is not None or array.itemsize == 1 else "OW"
    stream = io.BytesIO()
    if preamble:
        pydicom.dcmwrite(stream, data, enforce_file_format=True)
        return stream.getvalue()
    del data.file_meta
    is_implicit = syntax == "1.2.840.10008.1.2"
    pydicom.dcmwrite(stream, data, implicit_vr=is_implicit, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def foreign_files() -> Iterator[Case]:
    """Formats that are not read: each is refused by its name."""
    image = Image.fromarray(values("u1", 3, seed=1))
    for format in ("TGA", "PCX", "SGI", "ICO", "DDS", "IM"):
        yield Case("other formats", format, save(image, format), must_refuse=True)
    heads = {
        "FITS": b"SIMPLE  =                    T",
        "HDF5": b"\x89HDF\r\n\x1a\n",
        "NRRD": b"NRRD0004\n",
        "CZI": b"ZISRAWFILE",
        "ND2": b"\xda\xce\xbe\x0a",
        "NetCDF": b"CDF\x01",
        "OpenEXR": b"v/1\x01\x02",
        "Photoshop": b"8BPS\0\1",
        "MATLAB": b"MATLAB 5.0",
    }
    for name, head in heads.items():
        yield Case("other formats", name, head + bytes(1000), must_refuse=True)
    yield Case("other formats", "NIfTI", bytes(344) + b"n+1\0" + bytes(1000), must_refuse=True)

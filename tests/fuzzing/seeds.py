"""Small valid files of every kind of image that byol reads."""

import io
import zipfile
from collections.abc import Callable

import numpy as np
import tifffile
from PIL import Image

from byol.data.decode.content import open_package

_RNG = np.random.default_rng(0)
GREY, COLOUR = (_RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((9, 7), (9, 7, 3)))
DEEP = _RNG.integers(0, 65536, (9, 7), dtype=np.uint16)
FLOATS = _RNG.normal(size=(9, 7)).astype(np.float32)


def by_pillow(kind: str, pixels: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_tifffile(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def npz(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.npy", npy(pixels))
    return buffer.getvalue()


def dicom() -> list[bytes]:
    if not open_package("pydicom"):
        return []
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    files = []
    for pixels, photometric in ((GREY, "MONOCHROME1"), (DEEP, "MONOCHROME2"), (COLOUR, "RGB")):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
        buffer = io.BytesIO()
        data = FileDataset(buffer, {}, file_meta=meta, preamble=b"\0" * 128)
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
        if pixels.ndim == 3:
            data.PlanarConfiguration = 0
        data.PhotometricInterpretation = photometric
        bits = 8 * pixels.dtype.itemsize
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
        data.RescaleSlope, data.RescaleIntercept, data.PixelPaddingValue = "2.0", "-5.0", 0
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def _by_imagecodecs(name: str, pixels: np.ndarray, **options: object) -> bytes:
    import imagecodecs

    return bytes(getattr(imagecodecs, f"{name}_encode")(pixels, **options))


_TIFF_CODECS = ("jpeg", "jpeg2000", "jpegxr", "jpegxl", "webp", "zstd", "lzma", "packbits", "lerc", "png")
IMAGES: dict[str, Callable[[], list[bytes]]] = {
    "PNG": lambda: [
        by_pillow("PNG", GREY), by_pillow("PNG", COLOUR), by_pillow("PNG", DEEP),
        by_pillow("PNG", COLOUR, "P"), by_pillow("PNG", COLOUR, "RGBA"),
        by_pillow("PNG", GREY, transparency=3), by_pillow("PNG", COLOUR, optimize=True, dpi=(300, 300)),
    ],
    "JPEG": lambda: [
        by_pillow("JPEG", GREY), by_pillow("JPEG", COLOUR), by_pillow("JPEG", COLOUR, "CMYK"),
        by_pillow("JPEG", COLOUR, progressive=True), by_pillow("JPEG", COLOUR, exif=_exif()),
    ],
    "TIFF": lambda: [
        by_tifffile(GREY), by_tifffile(COLOUR, photometric="rgb"), by_tifffile(DEEP, byteorder=">"),
        by_tifffile(FLOATS), by_tifffile(np.stack([GREY] * 3), photometric="minisblack"),
        by_tifffile(np.tile(GREY, (4, 4)), tile=(16, 16)), by_tifffile(DEEP, bigtiff=True),
        by_tifffile(COLOUR, photometric="rgb", compression="zlib", predictor=True),
        by_tifffile(np.stack([GREY] * 2), ome=True, metadata={"axes": "CYX"}),
        by_pillow("TIFF", GREY, compression="tiff_lzw"),
    ],
    "TIFF, compressed": lambda: [
        by_tifffile(COLOUR, photometric="rgb", compression=codec)
        for codec in _TIFF_CODECS
    ],
    "GIF": lambda: [
        by_pillow("GIF", GREY), by_pillow("GIF", COLOUR, "P"), by_pillow("GIF", GREY, transparency=2),
        by_pillow("GIF", GREY, save_all=True, append_images=[Image.fromarray(GREY[::-1].copy())]),
    ],
    "BMP": lambda: [by_pillow("BMP", GREY), by_pillow("BMP", COLOUR), by_pillow("BMP", COLOUR, "P"),
                    by_pillow("BMP", COLOUR, "RGBA"), by_pillow("BMP", GREY, "1")],
    "WebP": lambda: [by_pillow("WEBP", COLOUR), by_pillow("WEBP", COLOUR, lossless=True),
                     by_pillow("WEBP", COLOUR, "RGBA")],
    "PNM": lambda: [by_pillow("PPM", GREY), by_pillow("PPM", COLOUR), by_pillow("PPM", DEEP),
                    by_pillow("PPM", GREY, "1")],
    "JPEG 2000": lambda: [by_pillow("JPEG2000", GREY), by_pillow("JPEG2000", COLOUR, "RGBA"),
                          by_pillow("JPEG2000", DEEP)],
    "AVIF": lambda: [_by_imagecodecs("avif", COLOUR), _by_imagecodecs("avif", GREY)],
    "JPEG XL": lambda: [_by_imagecodecs("jpegxl", COLOUR), _by_imagecodecs("jpegxl", DEEP)],
    "JPEG XR": lambda: [_by_imagecodecs("jpegxr", COLOUR), _by_imagecodecs("jpegxr", DEEP)],
    "npy": lambda: [npy(GREY), npy(COLOUR), npy(DEEP), npy(FLOATS), npy(np.asfortranarray(FLOATS)),
                    npy(DEEP.astype(">i4")), npy(COLOUR.transpose(2, 0, 1)), npy(GREY > 100)],
    "npz": lambda: [npz(GREY), npz(COLOUR), npz(FLOATS)],
    "DICOM": dicom,
}  # fmt: skip


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()

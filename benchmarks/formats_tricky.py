"""Files for benchmarks/formats.py that a reader easily gets wrong: what a header says beside the usual."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from formats_made import HEIGHT, WIDTH, Case, as_wanted, save, values
from formats_still import png, png_chunk
from formats_tiff import pages, tiff, turn
from PIL import Image
from pydicom.encaps import encapsulate

_GREY = values("u1", 1, seed=1)[..., 0]
_RGB = values("u1", 3, seed=2)
_DEEP = values("u2", 3, seed=3)


def orientations() -> Iterator[Case]:
    """EXIF's orientation in every format that may hold it."""
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[274] = orientation
        raw = exif.tobytes()
        name = f"EXIF orientation {orientation}"
        yield Case("PNG", name, save(Image.fromarray(_RGB), "PNG", exif=raw), turn(_RGB, orientation))
        deep = png(_DEEP, bits=16, colour=2, chunks=png_chunk(b"eXIf", raw[6:]))
        yield Case("PNG", f"{name}, 16 bit", deep, turn(_DEEP, orientation))
        webp = save(Image.fromarray(_RGB), "WEBP", lossless=True, exif=raw)
        yield Case("WebP", name, webp, turn(_RGB, orientation))
        jpeg = save(Image.fromarray(_RGB), "JPEG", quality=95, exif=raw)
        plain = np.asarray(Image.open(io.BytesIO(save(Image.fromarray(_RGB), "JPEG", quality=95))))
        yield Case("JPEG", name, jpeg, turn(plain, orientation))
        transcoded = imagecodecs.jpegxl_encode_jpeg(jpeg)
        yield Case("JPEG XL", f"JPEG, {name}", transcoded, turn(plain, orientation), atol=2)
        avif = save(Image.fromarray(_RGB), "AVIF", quality=100, subsampling="4:4:4", exif=raw)
        yield Case("AVIF", name, avif, turn(_RGB, orientation), atol=4)


def animations() -> Iterator[Case]:
    """The first frame of several."""
    frames = [Image.fromarray(_RGB), *(Image.fromarray(values("u1", 3, seed=at)) for at in (7, 8))]
    several: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    yield Case("WebP", "animation", save(frames[0], "WEBP", lossless=True, **several), _RGB)
    yield Case(
        "PNG",
        "animation with a picture of its own",
        save(frames[0], "PNG", default_image=True, **several),
        _RGB,
    )
    avif = save(frames[0], "AVIF", quality=100, subsampling="4:4:4", **several)
    yield Case("AVIF", "animation", avif, _RGB, atol=4)
    yield Case(
        "JPEG XL", "animation", imagecodecs.jpegxl_encode(np.stack([_RGB, 255 - _RGB]), lossless=True), _RGB
    )
    palettes = [frame.quantize(32) for frame in frames]
    gif = save(palettes[0], "GIF", save_all=True, append_images=palettes[1:])
    yield Case("GIF", "animation", gif, np.asarray(palettes[0].convert("RGB")))
    smaller = bytearray(save(Image.fromarray(_GREY[:10, :10]), "GIF"))
    smaller[6:10] = struct.pack("<HH", 40, 30)
    with Image.open(io.BytesIO(bytes(smaller))) as image:
        palette = np.asarray(image.getpalette()).reshape(-1, 3)
    screen = np.tile(palette[smaller[11]], (30, 40, 1)).astype("u1")  # of the background, as GIF89a has it
    screen[:10, :10] = _GREY[:10, :10, None]
    yield Case("GIF", "frame smaller than the screen", bytes(smaller), screen)


def bitmaps() -> Iterator[Case]:
    """BMP of 16 and 32 bits, with masks, from the top, run-length encoded."""
    short = values("u2", 1, seed=4)[..., 0]
    fill = np.zeros((HEIGHT, 1), "<u2")

    def unpack(shift: int, bits: int) -> np.ndarray:
        return (short >> shift & (2**bits - 1)) * 255.0 / (2**bits - 1)

    rows = np.hstack([short.astype("<u2"), fill])[::-1].tobytes()
    for name, masks, parts in (
        ("5, 5, 5 bits", None, ((10, 5), (5, 5), (0, 5))),
        ("5, 6, 5 bits", (0xF800, 0x7E0, 0x1F), ((11, 5), (5, 6), (0, 5))),
    ):
        want = np.dstack([unpack(*part) for part in parts]).astype("u1")
        yield Case("BMP", name, bitmap(16, rows, masks=masks), want, atol=1)
    bgra = values("u1", 4, seed=5)
    yield Case("BMP", "32 bit, the fourth unused", bitmap(32, bgra[::-1].tobytes()), bgra[..., 2::-1])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield Case(
        "BMP", "32 bit with alpha", bitmap(32, bgra[::-1].tobytes(), masks=masks, size=124), bgra[..., 2::-1]
    )
    padded = np.hstack([_RGB.reshape(HEIGHT, -1), np.zeros((HEIGHT, -3 * WIDTH % 4), "u1")])
    yield Case("BMP", "from the top", bitmap(24, padded.tobytes(), height=-HEIGHT), _RGB[..., ::-1])
    palette = np.random.default_rng(0).integers(0, 256, (256, 4), dtype=np.uint8)
    runs = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in _GREY[::-1]) + b"\0\1"
    encoded = bitmap(8, runs, palette=palette.tobytes(), compression=1)
    yield Case("BMP", "run lengths", encoded, palette[_GREY][..., 2::-1])


def bitmap(
    bits: int,
    rows: bytes,
    *,
    masks: tuple[int, ...] | None = None,
    size: int = 40,
    height: int = HEIGHT,
    palette: bytes = b"",
    compression: int = 0,
) -> bytes:
    """By hand; `size` is that of the header."""
    compression = 3 if masks is not None else compression
    number = len(rows), 2835, 2835, len(palette) // 4, 0
    header = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, *number)
    if masks is not None:
        header += struct.pack(f"<{len(masks)}I", *masks)
        header += bytes(size - len(header) if size > 40 else 0)
    first = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", first + len(rows), 0, 0, first) + header + palette + rows


def maps() -> Iterator[Case]:
    """PNM with comments, other largest values, several images; PAM and colours of PFM."""
    size = b"%d %d" % (WIDTH, HEIGHT)
    text = b" ".join(b"%d" % value for value in _GREY.ravel())
    yield Case(
        "PGM, PPM", "comment before the values", b"P2\n" + size + b"\n255\n# c\n" + text, _GREY[..., None]
    )
    thousand = values("u2", 1, seed=6) % 1001
    yield Case(
        "PGM, PPM", "up to 1000", b"P5 " + size + b" 1000\n" + thousand.astype(">u2").tobytes(), thousand
    )
    yield Case("PGM, PPM", "two images", 2 * (b"P5 " + size + b" 255\n" + _GREY.tobytes()), _GREY[..., None])
    black = _GREY > 127
    packed = b"P4\n" + size + b"\n" + np.packbits(black, axis=1).tobytes()
    yield Case("PGM, PPM", "bits", packed, as_wanted(~black))
    floats = values("f4", 3, seed=6)
    for order, scale in ("<", b"-1.0"), (">", b"1.0"):
        body = floats[::-1, :, :1].astype(f"{order}f4").tobytes()
        yield Case("PGM, PPM", f"PFM {order}", b"Pf\n" + size + b"\n" + scale + b"\n" + body, floats[..., :1])
    yield Case(
        "PGM, PPM", "PFM of colours", b"PF\n" + size + b"\n-1.0\n" + floats.tobytes(), must_refuse=True
    )
    head = b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nENDHDR\n" % (WIDTH, HEIGHT)
    yield Case("PGM, PPM", "PAM", head + _RGB.tobytes(), must_refuse=True)


def chunks() -> Iterator[Case]:
    """PNG with a damaged text, with one transparent colour of 16 bits, without its end."""
    text = bytearray(png_chunk(b"tEXt", b"Comment\0text"))
    text[10] ^= 1
    for bits, array in (8, _RGB), (16, _DEEP), (16, _DEEP[..., :1]):
        colour = 2 if array.shape[2] == 3 else 0
        file = png(array, bits=bits, colour=colour, chunks=bytes(text))
        yield Case("PNG", f"damaged text, {bits} bit, {array.shape[2]}", file, array)
        bits_used = png_chunk(b"sBIT", bytes([5] * array.shape[2]))
        yield Case("PNG", f"sBIT, {bits} bit", png(array, bits=bits, colour=colour, chunks=bits_used), array)
    yield Case("PNG", "no end", png(_RGB, bits=8, colour=2)[:-12], _RGB)


def stacks() -> Iterator[Case]:
    """Pages of a TIFF that are no channels, or seem to be none."""
    group = "TIFF, structure"
    palette = {"photometric": "palette", "colormap": values("u2", 3, seed=9).reshape(-1, 3).T[:, :256]}
    yield Case(group, "palette pages", pages((_GREY, palette), (_GREY, palette)), must_refuse=True)
    turned = [{"extratags": [(274, 3, 1, orientation, True)]} for orientation in (1, 3)]
    yield Case(
        group, "pages turned otherwise", pages((_GREY, turned[0]), (_GREY, turned[1])), must_refuse=True
    )
    both = np.dstack([_GREY, 255 - _GREY])
    same = pages((_GREY, turned[1]), (255 - _GREY, turned[1]))
    yield Case(group, "pages turned alike", same, turn(both, 3))
    white = {"photometric": "miniswhite"}
    yield Case(group, "white is zero, pages", pages((_GREY, white), (255 - _GREY, white)), 255 - both)
    marked = {"subfiletype": 2}
    yield Case(group, "pages marked as such", pages((_GREY, marked), (255 - _GREY, marked)), both)
    ome = io.BytesIO()
    import tifffile

    with tifffile.TiffWriter(ome, ome=True) as writer:
        for image in (_GREY, 255 - _GREY):
            writer.write(image, metadata={"axes": "YX"})
    yield Case(group, "OME, two images", ome.getvalue(), must_refuse=True)
    volume = values("u1", 16, seed=1)[:32, :32]
    tiled = tiff(np.moveaxis(volume, 2, 0), tile=(16, 16, 16), volumetric=True)
    yield Case(group, "volume in blocks", tiled, volume)
    inks = values("u1", 4, seed=7)
    other = tiff(inks, photometric="separated", extratags=[(332, 3, 1, 2, True)])
    yield Case("TIFF, colours", "inks that are not CMYK", other, must_refuse=True)


def tricky_dicom() -> Iterator[Case]:
    """Signs, planes, padding bits, palettes, compressed colours, and values that are refused."""
    frame = values("u2", 1, seed=3, bits=12)[..., 0]
    yield Case("DICOM", "overlay in the upper bits", _dicom(frame | 0xF000, stored=12), frame[..., None])
    signed = frame.astype("i2") - 2048
    packed = _dicom((signed & 0xFFF).astype("u2"), stored=12, PixelRepresentation=1)
    yield Case("DICOM", "12 bits with sign", packed, as_wanted(signed))
    yield Case("DICOM", "HighBit 15", _dicom(frame << 4, stored=12, HighBit=15), must_refuse=True)
    inverted = _dicom(frame, stored=12, PhotometricInterpretation="MONOCHROME1")
    yield Case("DICOM", "MONOCHROME1", inverted, 4095 - frame[..., None])
    window = _dicom(frame, stored=12, WindowCenter="40", WindowWidth="400")
    yield Case("DICOM", "a window for the eye", window, frame[..., None])
    frames = np.stack([frame, 4095 - frame])
    yield Case("DICOM", "frames", _dicom(frames, stored=12, NumberOfFrames=2), np.moveaxis(frames, 0, 2))
    yield Case("DICOM", "frames missing", _dicom(frames, stored=12, NumberOfFrames=3), must_refuse=True)
    colours: dict[str, Any] = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}
    planes = np.ascontiguousarray(np.moveaxis(_RGB, 2, 0))
    yield Case("DICOM", "RGB", _dicom(_RGB, **colours, PlanarConfiguration=0), _RGB)
    yield Case("DICOM", "RGB planes", _dicom(planes, **colours, PlanarConfiguration=1), _RGB)
    ycc = np.asarray(Image.fromarray(_RGB).convert("YCbCr"))
    full = colours | {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0}
    yield Case("DICOM", "YBR_FULL", _dicom(ycc, **full), _RGB, atol=2)
    hsv = colours | {"PhotometricInterpretation": "HSV", "PlanarConfiguration": 0}
    yield Case("DICOM", "HSV", _dicom(_RGB, **hsv), must_refuse=True)
    reversible = imagecodecs.jpeg2k_encode(_RGB, level=0, codecformat="j2k")
    rct = colours | {"PhotometricInterpretation": "YBR_RCT", "PlanarConfiguration": 0}
    encoded = _dicom(_RGB, **rct, encoded=reversible, syntax="1.2.840.10008.1.2.4.90")
    yield Case("DICOM", "JPEG 2000, RGB", encoded, _RGB)


def _dicom(
    array: np.ndarray,
    *,
    stored: int = 8,
    syntax: str = "1.2.840.10008.1.2.1",
    encoded: bytes | None = None,
    **tags: Any,
) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = HEIGHT, WIDTH, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * array.itemsize, stored, stored - 1
    data.PixelRepresentation, data.PhotometricInterpretation = 0, "MONOCHROME2"
    for name, value in tags.items():
        setattr(data, name, value)
    content = array.tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2) if encoded is None else encapsulate([encoded])
    data["PixelData"].VR = "OB" if encoded is not None or array.itemsize == 1 else "OW"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def tricky_arrays() -> Iterator[Case]:
    """`.npy` in Fortran's order, other byte orders and versions, and what is no image."""
    for name, array in {
        "Fortran": np.asfortranarray(_DEEP),
        "big-endian": _DEEP.astype(">u2"),
        "bool": _GREY > 127,
        "long double": values("f8", 1, seed=1)[..., 0].astype("longdouble"),
        "(1, height, width)": _GREY[None],
    }.items():
        want = (
            _GREY[..., None]
            if array.shape[0] == 1
            else as_wanted(array.astype(array.dtype.newbyteorder("=")))
        )
        yield Case("NumPy", name, _npy(array), want)
    for version in ((2, 0), (3, 0)):
        yield Case("NumPy", f"version {version[0]}", _npy(_DEEP, version=version), _DEEP)
    for name, array in {
        "complex": _GREY.astype("c8"),
        "structured": np.zeros((5, 5), [("r", "u1"), ("g", "u1")]),
        "text": np.array([["a", "b"]]),
        "dates": np.zeros((5, 5), "M8[s]"),
        "0 axes": np.array(5),
        "1 axis": np.arange(5),
        "4 axes": _RGB[None],
        "no pixels": np.zeros((0, 5)),
        "beyond 2^24": np.full((5, 5), 2**40),
    }.items():
        yield Case("NumPy", name, _npy(array), must_refuse=True)


def _npy(array: np.ndarray, *, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def tricky_files() -> Iterator[Case]:
    """All of these."""
    for make in (orientations, animations, bitmaps, maps, chunks, stacks, tricky_dicom, tricky_arrays):
        yield from make()

"""Still images: PNG, JPEG and its successors, HEIC, WebP, BMP, GIF, portable maps."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
import pillow_heif
from formats_made import HEIGHT, WIDTH, Case, as_wanted, save, values
from PIL import Image


def png(array: np.ndarray, *, bits: int, colour: int, chunks: bytes = b"", interlaced: bool = False) -> bytes:
    """By hand: bit depth and colour type of any kind."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def rows(part: np.ndarray) -> bytes:
        if part.size == 0:
            return b""
        if bits == 16:
            return b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
        if bits == 8:
            return b"".join(b"\0" + row.astype("u1").tobytes() for row in part)
        packed = ((part[..., 0, None] >> np.arange(bits - 1, -1, -1)) & 1).astype("u1").reshape(len(part), -1)
        return b"".join(b"\0" + np.packbits(row).tobytes() for row in packed)

    if interlaced:
        steps = (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        body = b"".join(rows(array[top::down, left::right]) for top, left, down, right in steps)
    else:
        body = rows(array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_files() -> Iterator[Case]:
    """Depth x colour type x interlacing, transparency, gamma, large texts."""
    group = "PNG"
    channels_of = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for colour, interlaced in itertools.product(depths, (False, True)):
        for bits in depths[colour]:
            array = values("u2" if bits == 16 else "u1", channels_of[colour], seed=bits, bits=bits)
            chunks = png_chunk(b"gAMA", struct.pack(">I", 45455))
            if colour == 3:
                chunks += png_chunk(b"PLTE", palette[: 2**bits].tobytes())
            want = (
                palette[array[..., 0]]
                if colour == 3
                else array[..., : channels_of[colour] - (colour in (4, 6))]
            )
            want = want * np.uint8(255 // (2**bits - 1)) if colour == 0 and bits < 8 else want
            name = f"{bits} bit, colour type {colour}, {interlaced=}"
            yield Case(
                group,
                name,
                png(array, bits=bits, colour=colour, chunks=chunks, interlaced=interlaced),
                want,
                ("vips",),
            )
            if colour in (0, 2, 3):
                key = {0: struct.pack(">H", 1), 2: struct.pack(">HHH", 1, 2, 3), 3: b"\0\x80\xff"[: 2**bits]}[
                    colour
                ]
                keyed = png(
                    array,
                    bits=bits,
                    colour=colour,
                    chunks=chunks + png_chunk(b"tRNS", key),
                    interlaced=interlaced,
                )
                yield Case(group, f"{name}, tRNS", keyed, want)
    rgb = values("u1", 3, seed=3)
    big = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(range(256)) * 6000))
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 500_000))
    for name, chunk in (("ICC of 1.5 MB", big), ("text of 2.5 MB", text), ("both", big + text)):
        yield Case(group, name, png(rgb, bits=8, colour=2, chunks=chunk), rgb)
        deep = values("u2", 3, seed=3)
        yield Case(group, f"{name}, 16 bit", png(deep, bits=16, colour=2, chunks=chunk), deep)
        yield Case(
            group, f"{name}, 16-bit grey", png(deep[..., :1], bits=16, colour=0, chunks=chunk), deep[..., :1]
        )
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    yield Case(group, "animation", stream.getvalue(), rgb)


def jpeg_files() -> Iterator[Case]:
    """8 bit by every mode, 12 bit, lossless."""
    group = "JPEG"
    for mode, subsampling, progressive in itertools.product(("L", "RGB", "CMYK"), (0, 1, 2), (False, True)):
        image = Image.fromarray(values("u1", 3, seed=subsampling)).convert(mode)
        data = save(image, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
        yield Case(
            group,
            f"{mode} {subsampling} {progressive=}",
            data,
            None,
            () if mode == "CMYK" else ("vips",),
            atol=4,
        )
    for bits, lossless, channels in itertools.product((8, 12, 16), (False, True), (1, 3)):
        if bits == 16 and not lossless:
            continue
        array = values("u1" if bits == 8 else "u2", channels, seed=bits, bits=bits)
        data = imagecodecs.jpeg_encode(
            array if channels > 1 else array[..., 0],
            bitspersample=bits,
            lossless=lossless,
            level=None if lossless else 95,
        )
        yield Case(
            group,
            f"{bits} bit {lossless=} {channels}",
            data,
            array if lossless and channels == 1 else None,
            ("imagecodecs.jpeg",),
            atol=0 if bits > 8 else 4,
        )


def jpeg_2000_files() -> Iterator[Case]:
    """Bits x channels x container."""
    for bits, channels, container in itertools.product((8, 10, 12, 16), (1, 2, 3, 4), ("jp2", "j2k")):
        array = values("u1" if bits == 8 else "u2", channels, seed=bits + channels, bits=bits)
        try:
            data = imagecodecs.jpeg2k_encode(
                array if channels > 1 else array[..., 0],
                level=0,
                reversible=True,
                codecformat=container,
                bitspersample=bits,
                mct=channels == 3,
            )
        except (ValueError, RuntimeError, imagecodecs.Jpeg2kError):
            continue
        want = array[..., :-1] if channels in (2, 4) and b"cdef" in bytes(data) else array
        yield Case(
            "JPEG 2000", f"{container} {bits} bit {channels}", data, want, ("gdal", "imagecodecs.jpeg2k")
        )
    signed = values("i2", 1, seed=1)[..., 0]
    yield Case(
        "JPEG 2000",
        "signed",
        imagecodecs.jpeg2k_encode(signed, level=0, reversible=True),
        as_wanted(signed),
        ("imagecodecs.jpeg2k",),
    )


def new_codecs() -> Iterator[Case]:
    """JPEG XL, AVIF and JPEG XR."""
    for kind, channels in itertools.product(("u1", "u2", "f4"), (1, 2, 3, 4)):
        array = values(kind, channels, seed=channels)
        array = array / 1000 if kind == "f4" else array
        data = imagecodecs.jpegxl_encode(array if channels > 1 else array[..., 0], lossless=True)
        yield Case(
            "JPEG XL",
            f"{kind} {channels}",
            data,
            as_wanted(array[..., :-1] if channels in (2, 4) else array),
            ("imagecodecs.jpegxl",),
        )
    for bits, channels in itertools.product((8, 10, 12), (1, 3, 4)):
        array = values("u1" if bits == 8 else "u2", channels, seed=bits, bits=bits)
        data = imagecodecs.avif_encode(
            array if channels > 1 else array[..., 0], level=100, bitspersample=bits
        )
        yield Case("AVIF", f"{bits} bit {channels}", data, None, ("imagecodecs.avif",))
    for kind, channels in itertools.product(("u1", "u2", "f4"), (1, 3)):
        array = values(kind, channels, seed=channels)
        data = imagecodecs.jpegxr_encode(array if channels > 1 else array[..., 0], level=1.0)
        yield Case("JPEG XR", f"{kind} {channels}", data, None, ("imagecodecs.jpegxr",))


def heic_and_webp_files() -> Iterator[Case]:
    """HEIC of 8 bits and more; WebP."""
    pillow_heif.register_heif_opener()
    for mode in ("L", "RGB", "RGBA"):
        image = Image.fromarray(values("u1", 4, seed=1)).convert(mode)
        yield Case(
            "HEIC", f"8 bit {mode}", save(image, "HEIF", quality=-1, chroma=444), None, ("heif",), atol=3
        )
    deep = values("u2", 3, seed=2)
    file = pillow_heif.from_bytes(mode="RGB;16", size=(WIDTH, HEIGHT), data=deep.tobytes())
    stream = io.BytesIO()
    file.save(stream, quality=-1, chroma=444)
    yield Case("HEIC", "16 bit as 10 or 12", stream.getvalue(), None, ("heif",))
    for mode in ("RGB", "RGBA"):
        array = values("u1", 4, seed=2)
        array[..., 3] = 200
        image = Image.fromarray(array).convert(mode)
        yield Case(
            "WebP",
            f"lossless {mode}",
            save(image, "WEBP", lossless=True, exact=True),
            array[..., :3],
            ("vips",),
        )
        yield Case("WebP", f"lossy {mode}", save(image, "WEBP", quality=80), None, ("vips",), atol=2)


def small_formats() -> Iterator[Case]:
    """BMP, GIF, portable maps."""
    rgb = values("u1", 3, seed=3)
    image = Image.fromarray(rgb)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        converted = image.convert(mode)
        want = np.asarray(converted.convert("RGB" if mode in ("P", "RGB", "RGBA") else "L"))
        yield Case(
            "BMP", mode, save(converted, "BMP"), as_wanted(want), ("imageio",) if mode in ("L", "RGB") else ()
        )
    yield Case(
        "GIF", "one frame", save(image.quantize(16), "GIF"), np.asarray(image.quantize(16).convert("RGB"))
    )
    for largest, channels, text in itertools.product((255, 1023, 4095, 65535), (1, 3), (False, True)):
        array = values("u2", channels, seed=largest, bits=largest.bit_length())
        kind = (2 if channels == 1 else 3) if text else (5 if channels == 1 else 6)
        head = f"P{kind}\n# a comment\n{WIDTH} {HEIGHT}\n{largest}\n".encode()
        stored = array.astype("u1") if largest < 256 else array.astype(">u2")
        body = " ".join(map(str, array.ravel().tolist())).encode() if text else stored.tobytes()
        yield Case(
            "PGM, PPM",
            f"P{kind} {largest}",
            head + body,
            array.astype("u1" if largest < 256 else "u2"),
            () if text else ("gdal",),
        )

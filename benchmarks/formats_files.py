"""Image files of every kind for benchmarks/formats.py, with the values that they were made from where known.

Sides are odd (33 x 47 px), values cover the whole range of their type, the seed is the file's place in the list.
"""

import io
import itertools
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pyvips
import rasterio
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate

HEIGHT, WIDTH = 33, 47


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: `want` (None: what the references say) or a refusal."""

    group: str
    name: str
    data: bytes
    want: np.ndarray | None = None
    references: tuple[str, ...] = ()  # readers whose values must be the file's, sample for sample
    atol: float = 0.0  # of lossy compressions, in the mean: decoders round, and enlarge colours, differently
    must_refuse: bool = False
    tags: dict[str, Any] = field(default_factory=dict)


def values(dtype: str, channels: int, *, seed: int, bits: int | None = None) -> np.ndarray:
    """A smooth image with noise, over the whole range of the type or of `bits`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    planes = [np.sin(rows / (5 + c)) * np.cos(columns / (7 + c)) for c in range(channels)]
    unit = np.clip((np.stack(planes, axis=2) + 1) / 2 + rng.normal(0, 0.05, (HEIGHT, WIDTH, channels)), 0, 1)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return ((unit - 0.3) * 1000).astype(kind)
    if kind.kind == "u":
        return np.rint(unit * (2 ** min(bits or 8 * kind.itemsize, 24) - 1)).astype(kind)
    reach = 2 ** (min(8 * kind.itemsize, 24) - 1) - 1
    return np.rint((unit * 2 - 1) * reach).astype(kind)


def as_wanted(array: np.ndarray) -> np.ndarray:
    """What `decode` makes of values that it does not convert otherwise."""
    array = array if array.ndim == 3 else array[..., None]
    if array.dtype == bool:
        return array * np.uint8(255)
    return array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)


def all_cases() -> Iterator[Case]:
    """Every file, in an order that does not change."""
    for make in (
        tiff_types, tiff_codecs, tiff_structure, tiff_colours, gdal_files, vips_files, png_files, jpeg_files,
        new_codecs, small_formats, array_files, dicom_files, foreign_files,
    ):  # fmt: skip
        yield from make()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    options.setdefault("photometric", "minisblack")
    options.setdefault("metadata", None)
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


# ---- TIFF


def tiff_types() -> Iterator[Case]:
    """Type x channels x planes x byte order, not compressed."""
    kinds = ("u1", "u2", "u4", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    for seed, (kind, channels, order) in enumerate(itertools.product(kinds, (1, 3, 13), "<>")):
        array = values(kind, channels, seed=seed)
        planar = seed % 2 == 1 and channels > 1
        data = tiff(
            np.moveaxis(array, 2, 0) if planar else array if channels > 1 else array[..., 0],
            photometric="rgb" if channels == 3 and kind[0] == "u" else "minisblack",
            planarconfig=("separate" if planar else "contig") if channels > 1 else None,
            byteorder=order,
            bigtiff=seed % 3 == 0,
            tile=(16, 32) if seed % 4 == 0 else None,
        )
        name = f"{kind} {channels} channels {order} {'planes' if planar else 'pixels'}"
        yield Case(
            "TIFF, types",
            name,
            data,
            as_wanted(array),
            ("tifffile",) if kind == "f2" else ("tifffile", "gdal"),
        )
    for bits in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15):
        array = values("u1" if bits <= 8 else "u2", 1, seed=bits, bits=bits)[..., 0]
        for white in (False, True):
            data = tiff(array, bitspersample=bits, photometric="miniswhite" if white else "minisblack")
            stored = array != 0 if bits == 1 else array
            want = as_wanted((~stored if bits == 1 else 2**bits - 1 - stored) if white else stored)
            yield Case(
                "TIFF, packed bits",
                f"{bits} bit {white=}",
                data,
                want,
                () if white or bits == 1 else ("tifffile",),
            )
    array = values("u2", 3, seed=1, bits=12)
    yield Case(
        "TIFF, packed bits",
        "12 bit RGB",
        tiff(array, bitspersample=12, photometric="rgb"),
        array,
        ("tifffile",),
    )
    for name, array in (
        ("complex", values("f4", 1, seed=1)[..., 0].astype("c8")),
        ("beyond 2^24", np.full((5, 7), 2**24 + 1, "u4")),
    ):
        yield Case("TIFF, types", name, tiff(array), must_refuse=True)


def tiff_codecs() -> Iterator[Case]:
    """Compression x predictor x type x channels x tiles."""
    lossless = (
        "lzw",
        "deflate",
        "zstd",
        "packbits",
        "lzma",
        "lerc",
        "jpegxl",
        "jpegxr",
        "png",
        "webp",
        "jpeg2000",
    )
    takes = {
        "png": ("u1", "u2"),
        "webp": ("u1",),
        "jpegxr": ("u1", "u2"),
        "jpegxl": ("u1", "u2", "f4"),
        "jpeg2000": ("u1", "u2"),
        "lerc": ("u1", "u2", "i2", "f4", "f8"),
    }
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": True},
        "jpegxl": {"lossless": True},
        "jpegxr": {"level": 100},
        "jpeg2000": {"level": 0},
    }
    for seed, (codec, kind, channels) in enumerate(
        itertools.product(lossless, ("u1", "u2", "i2", "f4", "f8"), (1, 3, 4, 13))
    ):
        if kind not in takes.get(codec, (kind,)) or (codec == "webp" and channels not in (3, 4)):
            continue
        if codec in ("png", "jpegxr", "jpegxl", "jpeg2000") and channels not in (1, 3):
            continue
        array = values(kind, channels, seed=seed)
        predictor = codec in ("lzw", "deflate", "zstd", "lzma") and seed % 3 != 0
        planar = channels == 13 and seed % 2 == 0
        try:
            data = tiff(
                np.moveaxis(array, 2, 0) if planar else array if channels > 1 else array[..., 0],
                compression=codec,
                compressionargs=options.get(codec, {}),
                predictor=predictor,
                photometric="rgb" if channels in (3, 4) and kind[0] == "u" else "minisblack",
                planarconfig=("separate" if planar else "contig") if channels > 1 else None,
                extrasamples=["unassalpha"] if channels == 4 and kind[0] == "u" else None,
                tile=(16, 32) if seed % 2 == 0 else None,
                byteorder="<>"[seed // 2 % 2],
                rowsperstrip=5 if seed % 2 == 1 else None,
            )
        except (ValueError, NotImplementedError, RuntimeError, imagecodecs.DelayedImportError):
            continue
        want = array[..., :3] if channels == 4 and kind[0] == "u" else array
        gdal = ("gdal",) if codec in ("lzw", "deflate", "zstd", "packbits", "lzma", "lerc") else ()
        exact = codec != "jpegxr"
        yield Case(
            "TIFF, compressions",
            f"{codec} {kind} {channels} {predictor=} {planar=}",
            data,
            as_wanted(want) if exact else None,
            ("tifffile", *gdal),
        )
    for seed, (kind, channels, tile) in enumerate(itertools.product(("u1",), (1, 3), (None, (32, 32)))):
        array = values(kind, channels, seed=seed)
        data = tiff(
            array if channels > 1 else array[..., 0],
            compression="jpeg",
            photometric="rgb" if channels == 3 else "minisblack",
            tile=tile,
        )
        yield Case("TIFF, compressions", f"jpeg {channels} {tile}", data, None, ("tifffile", "gdal"), atol=3)


def pages(*written: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **options) as writer:
        for array, how in written:
            writer.write(array, **({"metadata": None} | how))
    return stream.getvalue()


def tiff_structure() -> Iterator[Case]:
    """Pages, overviews, masks, SubIFDs, descriptions of ImageJ and OME."""
    group = "TIFF, structure"
    grey, rgb = values("u2", 1, seed=1)[..., 0], values("u1", 3, seed=2)
    stack = values("u2", 5, seed=3)
    planes = np.moveaxis(stack, 2, 0)
    as_rgb = {"photometric": "rgb"}
    mask = np.ones((HEIGHT, WIDTH), bool)
    half, thumb = {"photometric": "rgb", "subfiletype": 1}, {"photometric": "rgb", "subfiletype": 1}
    yield Case(group, "pages", tiff(planes), stack, ("tifffile",))
    yield Case(group, "pages, LZW", pages(*((p, {"compression": "lzw"}) for p in planes)), stack)
    yield Case(group, "overview", pages((rgb, as_rgb), (rgb[::2, ::2], half)), rgb, ("gdal",))
    yield Case(group, "overview first", pages((rgb[::2, ::2], thumb), (rgb, as_rgb)), rgb)
    yield Case(
        group, "two overviews", pages((rgb, as_rgb), (rgb[::2, ::2], half), (rgb[::4, ::4], half)), rgb
    )
    yield Case(
        group,
        "SubIFDs",
        pages((rgb, as_rgb | {"subifds": 2}), (rgb[::2, ::2], half), (rgb[::4, ::4], half)),
        rgb,
    )
    yield Case(group, "mask", pages((rgb, as_rgb), (mask, {"photometric": "mask", "subfiletype": 4})), rgb)
    yield Case(group, "other sizes", pages((rgb, as_rgb), (rgb[:20], as_rgb)), must_refuse=True)
    yield Case(group, "other depth", pages((grey, {}), (grey.astype("u1"), {})), must_refuse=True)
    yield Case(
        group,
        "one of many differs",
        pages(*((grey[: 20 if at == 3 else None], {}) for at in range(9))),
        must_refuse=True,
    )
    yield Case(
        group,
        "thumbnail and raw in SubIFDs",
        pages(
            (rgb[::4, ::4], thumb | {"subifds": 1}),
            (
                grey,
                {
                    "photometric": 32803,
                    "extratags": [(33421, 3, 2, (2, 2), True), (33422, 1, 4, b"\0\1\1\2", True)],
                },
            ),
        ),
        must_refuse=True,
    )
    for axes, array in (("CYX", planes), ("ZYX", planes), ("TYX", planes)):
        yield Case(
            group,
            f"ImageJ {axes}",
            tiff(array, imagej=True, metadata={"axes": axes}, photometric=None),
            stack,
            ("tifffile",),
        )
        yield Case(group, f"OME {axes}", tiff(array, ome=True, metadata={"axes": axes}), stack, ("tifffile",))
    four = np.stack([planes, planes])
    yield Case(
        group,
        "ImageJ ZCYX",
        tiff(four, imagej=True, metadata={"axes": "ZCYX"}, photometric=None),
        must_refuse=True,
    )
    yield Case(group, "OME TCYX", tiff(four, ome=True, metadata={"axes": "TCYX"}), must_refuse=True)
    yield Case(
        group,
        "OME pyramid",
        pages(
            (planes, {"subifds": 1, "metadata": {"axes": "CYX"}}),
            (planes[:, ::2, ::2], {"subfiletype": 1}),
            ome=True,
        ),
        stack,
    )
    yield Case(group, "RGB pages", tiff(np.stack([rgb, rgb]), photometric="rgb"), must_refuse=True)
    yield Case(group, "shaped", tiff(planes, metadata={"axes": "CYX"}), stack, ("tifffile",))
    square = values("u2", 13, seed=4)[:33, :33]
    yield Case(group, "rows as pages", tiff(square, metadata={}), must_refuse=True)
    for companions in (1, 2):
        yield from ome_set(group, stack, companions=companions)
    for orientation in range(1, 9):
        data = tiff(rgb, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        yield Case(group, f"orientation {orientation}", data, turn(rgb, orientation))


def ome_set(group: str, stack: np.ndarray, *, companions: int) -> Iterator[Case]:
    """A file a channel; or two channels a file, whose pages are then its channels."""
    planes = np.moveaxis(stack[..., :4], 2, 0)
    per_file = companions
    names = [f"a_{place}.ome.tif" for place in range(4 // per_file)]
    blocks = "".join(
        f'<TiffData FirstC="{c}" FirstT="0" FirstZ="0" IFD="{c % per_file}" PlaneCount="1">'
        f'<UUID FileName="{names[c // per_file]}">urn:uuid:{c // per_file}</UUID></TiffData>'
        for c in range(4)
    )
    for place in range(len(names)):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{place}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{WIDTH}" SizeY="{HEIGHT}" '
            f'SizeC="4" SizeZ="1" SizeT="1">{blocks}</Pixels></Image></OME>'
        )
        own = planes[place * per_file : (place + 1) * per_file]
        data = pages(*((plane, {"description": xml if at == 0 else None}) for at, plane in enumerate(own)))
        yield Case(group, f"OME set, file {place} of {len(names)}", data, np.moveaxis(own, 0, 2))


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by the definition of the tag: where row 0 and column 0 of the file lie."""
    turns = {1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1]}
    swapped = array.swapaxes(0, 1)
    turns |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    return turns[orientation]


def tiff_colours() -> Iterator[Case]:
    """White is zero, palettes, CMYK, YCbCr, Lab, extra samples."""
    group = "TIFF, colours"
    for kind in ("u1", "u2", "f4"):
        array = values(kind, 1, seed=5)[..., 0]
        want = -array if kind == "f4" else np.iinfo(kind).max - array
        yield Case(group, f"white is zero {kind}", tiff(array, photometric="miniswhite"), as_wanted(want))
    indices = values("u1", 1, seed=6)[..., 0]
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype("u2")
    yield Case(
        group,
        "palette",
        tiff(indices, photometric="palette", colormap=colours * 257),
        colours.T[indices].astype("u1"),
    )
    packed = io.BytesIO()
    Image.fromarray(indices >> 4).convert("L").quantize(16).save(packed, "TIFF")
    yield Case(group, "palette by Pillow", packed.getvalue(), np.asarray(Image.open(packed).convert("RGB")))
    for kind in ("u1", "u2"):
        inks = values(kind, 4, seed=7)
        largest = float(np.iinfo(kind).max)
        want = np.rint((largest - inks[..., :3]) * (largest - inks[..., 3:].astype("f8")) / largest).astype(
            kind
        )
        for codec in (None, "lzw"):
            yield Case(
                group,
                f"CMYK {kind} {codec}",
                tiff(inks, photometric="separated", compression=codec),
                want,
                atol=1,
            )
    luma = values("u1", 3, seed=8)
    want = np.asarray(Image.frombytes("YCbCr", (WIDTH, HEIGHT), luma.tobytes()).convert("RGB"))
    yield Case(group, "YCbCr", tiff(luma, photometric="ycbcr"), want)
    yield Case(group, "CIELab", tiff(luma, photometric="cielab"), must_refuse=True)
    for kind, extras in itertools.product(("u1", "u2", "f4"), ("unassalpha", "assocalpha", "unspecified")):
        rgba, grey = values(kind, 4, seed=9), values(kind, 2, seed=9)
        keeps = extras == "unspecified"
        for compression in (None, "deflate"):
            how = {"extrasamples": [extras], "compression": compression}
            yield Case(
                group,
                f"RGB + {extras} {kind}",
                tiff(rgba, photometric="rgb", **how),
                as_wanted(rgba if keeps else rgba[..., :3]),
            )
            yield Case(
                group,
                f"grey + {extras} {kind}",
                tiff(grey, planarconfig="contig", **how),
                as_wanted(grey if keeps else grey[..., :1]),
            )


# ---- As GDAL and libvips write them


def gdal_files() -> Iterator[Case]:
    """GeoTIFF: compression x interleave x type, masks, nodata, overviews, packed bits, alpha."""
    plans: list[tuple[str, str, int, dict[str, Any]]] = []
    for seed, (codec, interleave, kind) in enumerate(
        itertools.product(
            ("LZW", "DEFLATE", "ZSTD", "LERC", "LERC_ZSTD", "LERC_DEFLATE", "PACKBITS", "LZMA", "NONE"),
            ("PIXEL", "BAND"),
            ("uint16", "int16", "float32", "float64"),
        )
    ):
        how: dict[str, Any] = {
            "COMPRESS": codec,
            "INTERLEAVE": interleave,
            "TILED": "YES" if seed % 2 else "NO",
            "BLOCKXSIZE": 32,
            "BLOCKYSIZE": 16,
        }
        if codec in ("LZW", "DEFLATE", "ZSTD"):
            how["PREDICTOR"] = 2 if kind[0] in "ui" else 3
        if codec.startswith("LERC"):
            how["MAX_Z_ERROR"] = 0
        if not seed % 2:
            how = {key: value for key, value in how.items() if not key.startswith("BLOCK")}
        plans.append((f"{codec} {interleave} {kind}", kind, 13, how))
    for bits in (1, 2, 4, 12):
        plans.append(
            (f"NBITS={bits}", "uint8" if bits < 8 else "uint16", 1, {"NBITS": bits, "COMPRESS": "LZW"})
        )
    plans += [
        ("WebP", "uint8", 3, {"COMPRESS": "WEBP", "WEBP_LOSSLESS": "YES"}),
        (
            "JPEG, YCbCr",
            "uint8",
            3,
            {"COMPRESS": "JPEG", "PHOTOMETRIC": "YCBCR", "TILED": "YES", "BLOCKXSIZE": 16, "BLOCKYSIZE": 16},
        ),
        ("JPEG, RGB", "uint8", 3, {"COMPRESS": "JPEG", "PHOTOMETRIC": "RGB"}),
        ("alpha", "uint16", 4, {"ALPHA": "YES", "PHOTOMETRIC": "RGB", "COMPRESS": "LZW"}),
        ("sparse", "uint16", 2, {"SPARSE_OK": "TRUE", "TILED": "YES", "BLOCKXSIZE": 16, "BLOCKYSIZE": 16}),
        ("BigTIFF, big-endian", "uint16", 3, {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, (name, kind, channels, how) in enumerate(plans):
            array = values(np.dtype(kind).str[1:], channels, seed=seed, bits=how.get("NBITS"))
            path = Path(folder) / f"{seed}.tif"
            with rasterio.open(
                path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=channels, dtype=kind, **how
            ) as file:
                if name == "sparse":
                    array = np.zeros_like(array)
                    array[:16, :16] = 7
                    file.write(array[:16, :16, 0], 1, window=((0, 16), (0, 16)))
                    file.write(array[:16, :16, 1], 2, window=((0, 16), (0, 16)))
                else:
                    file.write(np.moveaxis(array, 2, 0))
            want = array[..., :3] if name == "alpha" else array
            exact = not name.startswith("JPEG")
            one_bit = how.get("NBITS") == 1
            yield Case(
                "GeoTIFF (GDAL)",
                name,
                path.read_bytes(),
                as_wanted(want != 0 if one_bit else want) if exact else None,
                () if one_bit else ("gdal",),
                atol=0 if exact else 3,
            )
        yield from gdal_masks(Path(folder))


def gdal_masks(folder: Path) -> Iterator[Case]:
    array = values("u1", 3, seed=3)
    planes = np.moveaxis(array, 2, 0)
    for codec, overviews in itertools.product(("NONE", "DEFLATE", "JPEG"), (False, True)):
        path = folder / f"mask{codec}{overviews}.tif"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=HEIGHT,
                width=WIDTH,
                count=3,
                dtype="uint8",
                compress=codec,
                photometric="RGB",
                tiled=True,
                blockxsize=16,
                blockysize=16,
            ) as file:
                file.write(planes)
                file.write_mask(np.arange(WIDTH)[None].repeat(HEIGHT, 0) > 5)
                if overviews:
                    file.build_overviews([2, 4])
        yield Case(
            "GeoTIFF (GDAL)",
            f"internal mask {codec} {overviews=}",
            path.read_bytes(),
            None if codec == "JPEG" else array,
            ("gdal",),
            atol=3 if codec == "JPEG" else 0,
        )
    path = folder / "cog.tif"
    with rasterio.open(
        path, "w", driver="COG", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", compress="DEFLATE"
    ) as file:
        file.write(planes)
    yield Case("GeoTIFF (GDAL)", "COG", path.read_bytes(), array, ("gdal",))


def vips_files() -> Iterator[Case]:
    """As libvips and libtiff write them."""
    group = "TIFF (libvips)"
    for seed, (kind, channels, codec) in enumerate(
        itertools.product(
            ("u1", "u2", "f4"),
            (1, 3),
            ("none", "lzw", "deflate", "packbits", "zstd", "webp", "jp2k", "jpeg", "ccittfax4"),
        )
    ):
        array = values(kind, channels, seed=seed)
        image = pyvips.Image.new_from_array(array)
        image = image.copy(
            interpretation="srgb"
            if channels == 3 and kind == "u1"
            else "rgb16"
            if channels == 3 and kind == "u2"
            else "multiband"
            if channels == 3
            else "b-w"
        )
        for how in (
            {},
            {"tile": True, "tile_width": 16, "tile_height": 16},
            {"pyramid": True, "tile": True, "tile_width": 16, "tile_height": 16, "subifd": True},
            {"pyramid": True, "tile": True, "tile_width": 16, "tile_height": 16},
        ):
            if (kind != "u1" and codec in ("webp", "jpeg", "ccittfax4")) or (
                codec == "ccittfax4" and (channels > 1 or how)
            ):
                continue
            options = (
                dict(how)
                | ({"predictor": "horizontal"} if codec in ("lzw", "deflate") and kind != "f4" else {})
                | ({"bitdepth": 1} if codec == "ccittfax4" else {})
                | ({"lossless": True} if codec in ("webp", "jp2k") else {})
            )
            try:
                data = image.tiffsave_buffer(compression=codec, **options)
            except pyvips.Error:
                continue
            exact = codec not in ("jpeg", "ccittfax4")
            yield Case(
                group,
                f"{codec} {kind} {channels} {sorted(how)}",
                data,
                as_wanted(array) if exact else None,
                ("vips",),
                atol=0 if exact else 3,
            )
    grey = values("u1", 1, seed=4)
    image = pyvips.Image.new_from_array(grey).copy(interpretation="b-w")
    for bits, white in itertools.product((1, 2, 4), (False, True)):
        yield Case(
            group,
            f"{bits} bit {white=}",
            image.tiffsave_buffer(bitdepth=bits, miniswhite=white),
            None,
            () if bits > 1 else ("vips",),
        )
    lab = pyvips.Image.new_from_array(values("u1", 3, seed=5)).copy(interpretation="srgb").colourspace("lab")
    yield Case(group, "Lab", lab.tiffsave_buffer(), must_refuse=True)
    yield Case(
        group,
        "ICC profile",
        pyvips.Image.new_from_array(values("u2", 3, seed=5))
        .copy(interpretation="rgb16")
        .icc_export(depth=16, output_profile="srgb")
        .tiffsave_buffer(compression="lzw"),
        None,
        ("vips",),
    )


# ---- Still images


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


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


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


def new_codecs() -> Iterator[Case]:
    """JPEG 2000, JPEG XL, AVIF, HEIC, JPEG XR, WebP."""
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
        want = array[..., :-1] if channels in (2, 4) else array
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
    import pillow_heif

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
            ("gdal",),
        )


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
            yield Case(
                "NumPy", f"{order}{kind} {stored.shape}", stream.getvalue(), as_wanted(array.astype(kind))
            )
    square = values("u2", 33, seed=1)[:33, :33]
    stream = io.BytesIO()
    np.save(stream, square)
    yield Case("NumPy", "33 x 33 x 33", stream.getvalue(), must_refuse=True)
    stream = io.BytesIO()
    np.savez_compressed(stream, image=values("u2", 3, seed=1))
    yield Case("NumPy", "npz", stream.getvalue(), values("u2", 3, seed=1))


# ---- DICOM


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
        "FITS": b"SIMPLE  =                    T", "HDF5": b"\x89HDF\r\n\x1a\n", "NRRD": b"NRRD0004\n", "CZI": b"ZISRAWFILE",
        "ND2": b"\xda\xce\xbe\x0a", "NetCDF": b"CDF\x01", "OpenEXR": b"v/1\x01\x02", "Photoshop": b"8BPS\0\1", "MATLAB": b"MATLAB 5.0",
    }  # fmt: skip
    for name, head in heads.items():
        yield Case("other formats", name, head + bytes(1000), must_refuse=True)
    yield Case("other formats", "NIfTI", bytes(344) + b"n+1\0" + bytes(1000), must_refuse=True)

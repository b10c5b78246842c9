"""TIFF files as tifffile writes them: types, compressions, pages, colours."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from formats_made import HEIGHT, WIDTH, Case, as_wanted, values
from PIL import Image

_LOSSLESS = (
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
_TAKES = {
    "png": ("u1", "u2"),
    "webp": ("u1",),
    "jpegxr": ("u1", "u2"),
    "jpegxl": ("u1", "u2", "f4"),
    "jpeg2000": ("u1", "u2"),
    "lerc": ("u1", "u2", "i2", "f4", "f8"),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True},
    "jpegxl": {"lossless": True},
    "jpegxr": {"level": 100},
    "jpeg2000": {"level": 0},
}


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """The bytes of a file that tifffile writes."""
    stream = io.BytesIO()
    options.setdefault("photometric", "minisblack")
    options.setdefault("metadata", None)
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


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
    for seed, (codec, kind, channels) in enumerate(
        itertools.product(_LOSSLESS, ("u1", "u2", "i2", "f4", "f8"), (1, 3, 4, 13))
    ):
        if kind not in _TAKES.get(codec, (kind,)) or (codec == "webp" and channels not in (3, 4)):
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
                compressionargs=_OPTIONS.get(codec, {}),
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
    for seed, (channels, tile) in enumerate(itertools.product((1, 3), (None, (32, 32)))):
        array = values("u1", channels, seed=seed)
        data = tiff(
            array if channels > 1 else array[..., 0],
            compression="jpeg",
            photometric="rgb" if channels == 3 else "minisblack",
            tile=tile,
        )
        yield Case("TIFF, compressions", f"jpeg {channels} {tile}", data, None, ("tifffile", "gdal"), atol=3)


def pages(*written: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    """The bytes of a file of several pages, each with its options."""
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


def tiff_descriptions() -> Iterator[Case]:
    """Stacks as ImageJ, OME and tifffile describe them, and orientations."""
    group = "TIFF, structure"
    rgb, stack = values("u1", 3, seed=2), values("u2", 5, seed=3)
    planes = np.moveaxis(stack, 2, 0)
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
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{place}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
            f'Type="uint16" SizeX="{WIDTH}" SizeY="{HEIGHT}" '
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

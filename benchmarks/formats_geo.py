"""TIFF files as GDAL and libvips write them."""

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import rasterio
from formats_made import HEIGHT, WIDTH, Case, as_wanted, values


def gdal_plans() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Name, type, channels and GDAL's options."""
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
        yield f"{codec} {interleave} {kind}", kind, 13, how
    for bits in (1, 2, 4, 12):
        yield f"NBITS={bits}", "uint8" if bits < 8 else "uint16", 1, {"NBITS": bits, "COMPRESS": "LZW"}
    yield from (
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
    )


def gdal_files() -> Iterator[Case]:
    """GeoTIFF: compression x interleave x type, masks, nodata, overviews, packed bits, alpha."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, (name, kind, channels, how) in enumerate(gdal_plans()):
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
    """Masks and overviews inside the file; a cloud-optimised one."""
    array = values("u1", 3, seed=3)
    planes = np.moveaxis(array, 2, 0)
    for codec, overviews in itertools.product(("NONE", "DEFLATE", "JPEG"), (False, True)):
        path = folder / f"mask{codec}{overviews}.tif"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
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
            ) as file,
        ):
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
        colours = {"u1": "srgb", "u2": "rgb16", "f4": "multiband"}[kind]
        image = image.copy(interpretation=colours if channels == 3 else "b-w")
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


def vips_samples() -> Iterator[Case]:
    """Few bits, Lab, and a colour profile."""
    group = "TIFF (libvips)"
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

"""Are decoded images what was saved? Some hundred files of every kind against the reference readers.

    pip install -r benchmarks/requirements-formats.txt
    python benchmarks/formats.py              # prints the table of docs/formats.md and what went wrong
    python benchmarks/formats.py --group TIFF

A file is right if its values are those that it was made from and those that the reference readers give
(tifffile with imagecodecs, GDAL through rasterio, libvips, pydicom, imageio); it may be refused, with one
line, where it has no one meaning or its format is not read. Anything else is WRONG.
The exit code is 1 if any is.
"""

import argparse
import io
import logging
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import imagecodecs
import imageio.v3 as imageio
import numpy as np
import pydicom
import pyvips
import tifffile
from formats_geo import gdal_files, vips_files, vips_samples
from formats_made import Case
from formats_other import array_files, dicom_files, foreign_files
from formats_still import (
    heic_and_webp_files,
    jpeg_2000_files,
    jpeg_files,
    new_codecs,
    png_files,
    small_formats,
)
from formats_tiff import tiff_codecs, tiff_colours, tiff_descriptions, tiff_structure, tiff_types
from formats_tricky import tricky_files
from rasterio.io import MemoryFile

from byol.base.errors import DataError
from byol.data.decode.image import decode, decode_all
from byol.data.decode.reading import noting

MAKERS = (
    tiff_types,
    tiff_codecs,
    tiff_structure,
    tiff_descriptions,
    tiff_colours,
    gdal_files,
    vips_files,
    vips_samples,
    png_files,
    jpeg_files,
    jpeg_2000_files,
    new_codecs,
    heic_and_webp_files,
    small_formats,
    array_files,
    dicom_files,
    foreign_files,
    tricky_files,
)


def all_cases() -> Iterator[Case]:
    """Every file, in an order that does not change."""
    for make in MAKERS:
        yield from make()


def by_gdal(data: bytes) -> np.ndarray:
    with MemoryFile(data) as file, file.open() as image:
        return np.moveaxis(image.read(), 0, 2)


def by_vips(data: bytes) -> np.ndarray:
    return np.asarray(pyvips.Image.new_from_buffer(data, "").numpy())


def by_pydicom(data: bytes) -> np.ndarray:
    return pydicom.dcmread(io.BytesIO(data)).pixel_array


def by_tifffile(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        array = series.asarray()
        extra = [at for at, axis in enumerate(series.axes) if axis not in "YX"]
        return np.moveaxis(array, extra[0], -1) if extra else array


def by_heif(data: bytes) -> np.ndarray:
    import pillow_heif

    return np.asarray(pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))


READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "gdal": by_gdal,
    "vips": by_vips,
    "pydicom": by_pydicom,
    "tifffile": by_tifffile,
    "heif": by_heif,
    "imageio": lambda data: imageio.imread(io.BytesIO(data)),
}


def judge(case: Case) -> tuple[str, str]:
    """ "right", "refused" or "WRONG", and the reason."""
    try:
        with noting("drop"):  # what is under transparency; how it is laid on white, tests say
            image, samples = decode(case.data), decode_all(case.data).pixels
    except DataError as error:
        return ("refused", str(error)) if case.must_refuse else ("WRONG", f"refused: {error}")
    if case.must_refuse:
        return "WRONG", f"not refused: {image.shape} {image.dtype}"
    if case.want is not None and (difference := differ(image, case.want, case.atol)):
        return "WRONG", f"made from other values: {difference}"
    for name in case.references:
        try:
            read = READERS.get(name) or getattr(imagecodecs, f"{name.rpartition('.')[2]}_decode")
            found = read(case.data)
        except Exception as error:
            return "right", f"{name} does not read it: {error!r:.80}"
        found = found if found.ndim == 3 else found[..., None]
        if difference := differ(samples, found, case.atol):
            return "WRONG", f"{name} has other values: {difference}"
    return "right", ""


def differ(image: np.ndarray, want: np.ndarray, atol: float) -> str:
    if image.shape != want.shape:
        return f"{image.shape} for {want.shape}"
    whole = (np.dtype("u1"), np.dtype("u2"))
    if image.dtype != want.dtype.newbyteorder("=") and (image.dtype in whole or want.dtype in whole):
        return f"{image.dtype} for {want.dtype}"
    difference = np.abs(image.astype("f8") - want.astype("f8").astype("f4"))
    if (difference.max() if atol == 0 else difference.mean()) > atol:
        return f"values differ by {difference.mean():.3g}, up to {difference.max():g}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", default="", help="only groups whose name holds this")
    wanted = parser.parse_args().group
    warnings.simplefilter("ignore")
    logging.disable()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    lines: dict[str, Counter[str]] = defaultdict(Counter)
    wrong, unread = [], []
    for case in all_cases():
        if wanted not in case.group:
            continue
        verdict, reason = judge(case)
        counts[case.group][verdict] += 1
        if verdict == "refused":
            lines[case.group][reason] += 1
        elif verdict == "WRONG":
            wrong.append(f"{case.group}: {case.name}: {reason}")
        elif reason:
            unread.append(f"{case.group}: {case.name}: {reason}")
    print("| files | right | refused | wrong |\n|---|---|---|---|")
    for group, count in counts.items():
        print(f"| {group} | {count['right']} | {count['refused']} | {count['WRONG']} |")
    total = sum(counts.values(), Counter[str]())
    print(f"| all | {total['right']} | {total['refused']} | {total['WRONG']} |\n")
    for group, reasons in lines.items():
        print("\n".join(f"refused, {group}: {number} x {reason}" for reason, number in reasons.items()))
    print("\n".join(f"not compared: {text}" for text in unread))
    print("\n".join(f"WRONG {text}" for text in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""DICOM: the pixels as the file means them."""

import re
from typing import Any

import numpy as np

from byol.base.errors import DataError
from byol.base.packages import install_command
from byol.data.decode.codecs import check_jpeg_end
from byol.data.decode.formats import UNKNOWN, Decoded, Missing, RawArray, Stream, as_image, check_header

_CODECS = {  # of transfer syntaxes that pydicom leaves to other packages
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.57": "jpeg",
    "1.2.840.10008.1.2.4.70": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2k",
    "1.2.840.10008.1.2.4.91": "jpeg2k",
}
_IMPLICIT = "1.2.840.10008.1.2"  # .1 explicit, .2 big-endian
_BARE = re.compile(rb"[\x02\x08]\0[\0-\xff]\0(?:[A-Z]{2}|[\0-\xff]{2}\0\0)", re.DOTALL)


def is_dicom(head: bytes) -> bool:
    """By the mark after the preamble, or by the first element where an old file has neither."""
    return head[128:132] == b"DICM" or _BARE.match(head) is not None


def read_dicom(stream: Stream) -> Decoded:
    """Rescaled, colours as RGB, MONOCHROME1 inverted; frames are channels; the padding value is missing.

    Inverted is a stored v to (largest storable) - v, so that in every image of a set high is bright. Rescaled
    values (CT: Hounsfield units) are float32; without slope and intercept the stored ones are kept.
    """
    try:
        from pydicom import dcmread  # 0.4 s
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    except ImportError:
        raise DataError(f"is a DICOM file; to read it: {install_command('pydicom')}") from None
    is_bare = stream.read(132)[128:] != b"DICM"
    stream.seek(0)
    try:
        data = dcmread(stream, force=is_bare)
    except InvalidDicomError:
        raise DataError(UNKNOWN) from None
    if "Rows" not in data or "Columns" not in data:
        known = (
            "PatientID" in data or "SOPClassUID" in data or "DirectoryRecordSequence" in data or not is_bare
        )
        raise DataError("is a DICOM file without an image; leave it out" if known else UNKNOWN)
    check_header(int(data.Rows), int(data.Columns), np.dtype(np.uint16))
    photometric, frames = str(data.PhotometricInterpretation), int(data.get("NumberOfFrames") or 1)
    _check_stored(data, photometric)
    stored = _read_stored(data)
    is_colour = not photometric.startswith("MONOCHROME")
    if is_colour and frames > 1:
        raise DataError(f"has {frames} colour frames; save each as a separate file")
    if photometric == "PALETTE COLOR":
        return Decoded(as_image(apply_color_lut(stored, data)))
    if is_colour:
        return Decoded(as_image(stored))
    stored = np.moveaxis(stored, 0, -1) if frames > 1 else stored[..., None]
    missing = _find_padding(stored, data)
    values = stored.astype(np.bool_) if data.get("BitsAllocated") == 1 else stored
    if photometric == "MONOCHROME1":
        values = _inverted(values, bits=int(data.get("BitsStored", 0)))
    if "ModalityLUTSequence" in data:
        values = apply_modality_lut(values, data).astype(np.float32)
    else:
        values = _rescaled(values, data, frames=frames)
    return Decoded(as_image(values, missing), missing)


def _check_stored(data: Any, photometric: str) -> None:
    """Refuse what pydicom would read otherwise than it is meant."""
    if not photometric.startswith(("MONOCHROME", "RGB", "YBR_", "PALETTE")):
        raise DataError(
            f"has the colour space {photometric}, which byol does not read; convert it to RGB or grey"
        )
    highest = int(data.get("BitsStored", 0)) - 1
    if "PixelData" in data and int(data.get("HighBit", highest)) != highest:
        raise DataError(
            f"holds {highest + 1}-bit values with HighBit {data.HighBit}; convert it so that HighBit is "
            f"{highest}"
        )


def _read_stored(data: Any) -> RawArray:
    from pydicom.pixels.utils import pixel_array

    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = (
            _IMPLICIT
            if data.original_encoding[0]
            else _IMPLICIT + (".1" if data.original_encoding[1] else ".2")
        )
    try:
        values: RawArray = pixel_array(data)
    except RuntimeError as error:  # a compression whose decoder is another package: its message is long
        syntax = data.file_meta.TransferSyntaxUID
        if syntax in _CODECS and int(data.SamplesPerPixel) == 1:
            return _read_by_imagecodecs(data, _CODECS[syntax])
        raise DataError(
            f"is compressed in a way that pydicom cannot read here ({syntax.name}); "
            + install_command("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
        ) from error
    return values


def _read_by_imagecodecs(data: Any, codec: str) -> RawArray:
    """Frames of grey, with the sign that the file says."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    number = int(data.get("NumberOfFrames") or 1)
    decode = getattr(imagecodecs, f"{codec}_decode")
    encoded = list(generate_frames(data.PixelData, number_of_frames=number))
    if codec == "jpeg":
        for frame in encoded:
            check_jpeg_end(frame)
    values: RawArray = np.stack([decode(frame) for frame in encoded])
    if values.shape != (number, data.Rows, data.Columns):
        raise DataError(f"is damaged or cut short (its frames are {values.shape[1:]})")
    if data.PixelRepresentation == 1:  # the sign is the highest of the stored bits
        unused = 32 - int(data.BitsStored)
        values = ((values.astype(np.int32) << unused) >> unused).astype(f"i{int(data.BitsAllocated) // 8}")
    return values if number > 1 else values[0]


def _find_padding(stored: RawArray, data: Any) -> Missing | None:
    """Where a stored value is PixelPaddingValue, or from there to PixelPaddingRangeLimit."""
    first = data.get("PixelPaddingValue")
    if first is None or stored.dtype.kind not in "ui":
        return None
    first, last = int(first), int(data.get("PixelPaddingRangeLimit", first))
    if stored.dtype.kind == "i":  # written as if it had no sign
        bits = 8 * stored.itemsize
        first, last = (value - 2**bits if value >= 2 ** (bits - 1) else value for value in (first, last))
    found: Missing = (stored >= min(first, last)) & (stored <= max(first, last))
    return found if found.any() else None


def _rescaled(values: RawArray, data: Any, *, frames: int) -> RawArray:
    """v x slope + intercept; those of each frame where the frames of an enhanced image have their own."""
    scales = [_scale_of(data)]
    groups = data.get("PerFrameFunctionalGroupsSequence")
    shared = data.get("SharedFunctionalGroupsSequence")
    if scales[0] is None and shared:
        scales = [_scale_of(_transformation(shared[0]))]
    if scales[0] is None and groups and len(groups) == frames:
        scales = [_scale_of(_transformation(group)) for group in groups]
    factors = np.array([(1.0, 0.0) if scale is None else scale for scale in scales]).T
    if (factors[0] == 1.0).all() and (factors[1] == 0.0).all():
        return values
    rescaled: RawArray = (values * factors[0] + factors[1]).astype(np.float32)
    return rescaled


def _transformation(group: Any) -> Any:
    found = group.get("PixelValueTransformationSequence")
    return found[0] if found else {}


def _scale_of(data: Any) -> tuple[float, float] | None:
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    if slope is None and intercept is None:
        return None
    return float(slope or 1), float(intercept or 0)


def _inverted(values: RawArray, *, bits: int) -> RawArray:
    if values.dtype.kind == "f":
        return -values
    if values.dtype.kind in "bi":
        return ~values
    return np.asarray(2**bits - 1 - values, dtype=values.dtype)

"""DICOM, by files that pydicom writes: values as they are meant, and a reason for what is not read."""

import io
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from byol.base.errors import DataError
from byol.config import load_config
from byol.data.decode.image import decode, kind_of, load, peek, read_square
from byol.data.pack.packing import pack
from byol.data.sources.opening import open_source

pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (7, 5), dtype=np.uint16)
SIGNED = RNG.integers(-1000, 3000, (7, 5), dtype=np.int16)
SHALLOW = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def write(
    values: np.ndarray | None,
    photometric: str = "MONOCHROME2",
    *,
    bits: int | None = None,
    frames: int = 1,
    syntax: str = "1.2.840.10008.1.2.1",
    **tags: object,
) -> bytes:
    """Of a secondary capture; little-endian, not compressed, whatever `syntax` claims."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    if values is not None:
        shape = values.shape[1:] if frames > 1 else values.shape
        data.Rows, data.Columns = shape[:2]
        data.SamplesPerPixel = 3 if len(shape) == 3 else 1
        data.PhotometricInterpretation = photometric
        data.BitsAllocated = 8 * values.itemsize
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(values.dtype.kind == "i")
        if len(shape) == 3:
            data.PlanarConfiguration = 0
        if frames > 1:
            data.NumberOfFrames = frames
        content = values.tobytes() + b"\0" * (values.nbytes % 2)
        compressed = syntax != "1.2.840.10008.1.2.1"
        data.PixelData = pydicom.encaps.encapsulate([content]) if compressed else content
        data["PixelData"].VR = "OB" if compressed or values.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (write(SHALLOW), SHALLOW[..., None]),
        (write(DEEP, bits=12), DEEP[..., None]),
        (write(DEEP, bits=12, RescaleSlope=1, RescaleIntercept=0), DEEP[..., None]),
        (write(SIGNED), SIGNED[..., None].astype("f4")),
        (
            write(DEEP, bits=12, RescaleSlope="1", RescaleIntercept="-1024"),
            DEEP[..., None].astype("f4") - 1024,
        ),
        (write(SIGNED, RescaleSlope="0.5", RescaleIntercept="3"), SIGNED[..., None].astype("f4") / 2 + 3),
        (write(DEEP, "MONOCHROME1", bits=12), 4095 - DEEP[..., None]),
        (write(SHALLOW, "MONOCHROME1"), 255 - SHALLOW[..., None]),
        (
            write(DEEP, "MONOCHROME1", bits=12, RescaleSlope="2", RescaleIntercept="0"),
            2 * (4095 - DEEP[..., None].astype("f4")),
        ),
        (write(SIGNED, "MONOCHROME1"), -1 - SIGNED[..., None].astype("f4")),
        (write(RGB, "RGB"), RGB),
        (write(np.stack([DEEP, DEEP // 2]), frames=2, bits=12), np.stack([DEEP, DEEP // 2], axis=2)),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_values_are_as_they_are_meant(file: bytes, expected: np.ndarray) -> None:
    image = decode(file)
    np.testing.assert_array_equal(image, expected, strict=True)
    assert image.flags.c_contiguous and peek(file) == kind_of(image)


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_file_without_preamble_or_meta_information_is_known_by_its_content(is_implicit: bool) -> None:
    data = pydicom.dcmread(io.BytesIO(write(DEEP, bits=12)))
    bare = pydicom.Dataset()
    bare.update({key: value for key, value in data.items() if key.group != 2})
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, bare, implicit_vr=is_implicit, little_endian=True, enforce_file_format=False)
    assert stream.getvalue()[128:132] != b"DICM"
    np.testing.assert_array_equal(decode(stream.getvalue()), DEEP[..., None], strict=True)


@pytest.mark.parametrize("limit", [None, -1900])
def test_padding_is_filled_and_does_not_count(limit: int | None) -> None:
    stored = SIGNED.copy()
    stored[0] = -2000
    if limit is not None:
        stored[1] = -1950
    tags = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    file = write(stored, RescaleSlope="1", RescaleIntercept="-1024", PixelPaddingValue=-2000, **tags)
    assert decode(file).min() == -3024
    loaded = load(file)
    rows = 1 if limit is None else 2
    assert loaded.missing == pytest.approx(rows / 7)
    assert loaded.pixels.min() == SIGNED[rows:].min() - 1024
    np.testing.assert_array_equal(loaded.pixels[rows:, :, 0], SIGNED[rows:].astype("f4") - 1024)


@pytest.mark.parametrize("kind", ["lossless", "ls", "j2k"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_compressed_frames_are_read_without_further_packages(kind: str, is_signed: bool) -> None:
    values = (SIGNED // 4 if is_signed else DEEP).astype("i2" if is_signed else "u2")
    bits = 16 if kind == "j2k" and is_signed else 12
    stored = (values.astype(np.int32) & 4095).astype("u2")
    if kind == "lossless":
        frame, syntax = imagecodecs.jpeg_encode(stored, bitspersample=bits, lossless=True), "70"
    elif kind == "ls":
        frame, syntax = imagecodecs.jpegls_encode(stored), "80"
    else:
        coded = values if is_signed else stored
        frame, syntax = imagecodecs.jpeg2k_encode(coded, level=0, reversible=True, codecformat="j2k"), "90"
    data = pydicom.dcmread(io.BytesIO(write(values, bits=bits)))
    data.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{syntax}"
    data.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    data["PixelData"].VR = "OB"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    expected = values.astype("f4") if is_signed else values
    np.testing.assert_array_equal(decode(stream.getvalue())[..., 0], expected, strict=True)


def test_frames_of_an_enhanced_image_are_rescaled_each_by_its_own() -> None:
    groups = []
    for slope in ("1", "2.5"):
        scale = pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = slope, "-10"
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = [scale]
        groups.append(group)
    frames = np.stack([DEEP, DEEP])
    file = write(frames, frames=2, bits=12, PerFrameFunctionalGroupsSequence=groups)
    expected = DEEP[..., None].astype("f4") * np.array([1, 2.5], "f4") - 10
    np.testing.assert_array_equal(decode(file), expected)


def test_colours_are_rgb() -> None:
    """A palette of 8 bits, and luma and chroma: white, black and red."""
    colours = RNG.integers(0, 256, (6, 3), dtype=np.uint8)
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, table in zip(("Red", "Green", "Blue"), colours.T, strict=True)
        for part, value in (("Descriptor", [6, 0, 8]), ("Data", table.tobytes()))
    }
    indices = RNG.integers(0, 6, (7, 5), dtype=np.uint8)
    np.testing.assert_array_equal(decode(write(indices, "PALETTE COLOR", **palette)), colours[indices])
    ybr = np.array([[[255, 128, 128], [0, 128, 128], [76, 85, 255]]], dtype=np.uint8)
    red = decode(write(ybr, "YBR_FULL"))
    assert np.abs(red.astype(int) - [[[255, 255, 255], [0, 0, 0], [254, 0, 0]]]).max() <= 2


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (write(None), "is a DICOM file without an image"),
        (write(DEEP)[:-20], "is damaged or cut short"),
        (write(np.stack([RGB, RGB]), "RGB", frames=2), "has 2 colour frames"),
        (write(SHALLOW, syntax="1.2.840.10008.1.2.4.57"), "is damaged or cut short"),
        (
            write(RGB, "RGB", syntax="1.2.840.10008.1.2.4.57"),
            r"compressed in a way that pydicom cannot read here \(JPEG Lossless",
        ),
        (write(SHALLOW, Rows=60_000, Columns=60_000), "more than the 178,956,970"),
    ],
    ids=["no image", "cut", "colour frames", "no JPEG", "compressed", "bomb"],
)
def test_what_is_not_read_has_one_reason(file: bytes, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        decode(file)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_a_folder_of_them_is_packed_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(3):
        file = write(DEEP + number, bits=12, RescaleSlope="1", RescaleIntercept="-1024")
        (tmp_path / "scans" / f"{number}.DCM").write_bytes(file)
    source = open_source(load_config(None, [], preset="default").data, source=str(tmp_path / "scans"))
    packed = pack(
        source,
        folder=tmp_path / "p",
        stored_px=None,
        view_px=8,
        channels=None,
        max_bad=0.0,
        num_workers=1,
    )
    assert packed.images.shape == (3, 7, 7, 1) and packed.bits == 32
    expected = read_square(DEEP[..., None].astype(np.float32) - 1023, px=7, channels=None).pixels
    np.testing.assert_array_equal(packed.images[1], expected)


def test_without_pydicom_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(write(DEEP))
    program = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from byol.data.decode.image import decode\n"
        "try:\n    decode(sys.argv[1])\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "scan.dcm")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == "DataError is a DICOM file; to read it: pip install pydicom\n"


def test_values_in_the_upper_bits_and_unknown_colours_are_refused() -> None:
    """pydicom would take the lower bits, and any three samples for RGB."""
    with pytest.raises(DataError, match="12-bit values with HighBit 15; convert it so that HighBit is 11"):
        decode(write(DEEP << 4, bits=12, HighBit=15))
    with pytest.raises(DataError, match=r"colour space HSV.*convert it to RGB or grey"):
        decode(write(RGB, "HSV"))


def test_overlays_in_the_upper_bits_are_no_values() -> None:
    np.testing.assert_array_equal(decode(write(DEEP | 0xF000, bits=12))[..., 0], DEEP)

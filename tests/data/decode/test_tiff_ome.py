"""Sets of OME-TIFF files: each is its own planes, in their order, or is refused with the set's name."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile

from byol.base.errors import DataError
from byol.data.decode.image import decode

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 33, 47
PLANES = RNG.integers(0, 65_535, (12, HEIGHT, WIDTH)).astype(np.uint16)
PADDING = bytes(2**20)  # files above this size are not read at once
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def describe(
    blocks: str, *, own: str | None = "urn:uuid:0", sizes: str = "411", order: str = "XYCZT", images: int = 1
) -> str:
    """OME-XML; `sizes` are those of C, Z and T, `blocks` the TiffData of each image."""
    c, z, t = sizes
    image = (
        f'<Image ID="Image:0" Name="well 7"><Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint16" '
        f'SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="{c}" SizeZ="{z}" SizeT="{t}">{blocks}</Pixels></Image>'
    )
    uuid = "" if own is None else f' UUID="{own}"'
    return f'<?xml version="1.0"?>{OME}{uuid}>{image * images}</OME>'


def block(file: int | None, *, page: int | None = 0, count: int | None = 1, **first: int) -> str:
    """A TiffData of planes in file number `file`, from c, z and t on; None: nothing is said."""
    text = "".join(f' First{axis.upper()}="{at}"' for axis, at in first.items())
    text += "" if page is None else f' IFD="{page}"'
    text += "" if count is None else f' PlaneCount="{count}"'
    uuid = "" if file is None else f'<UUID FileName="f{file}.ome.tif">urn:uuid:{file}</UUID>'
    return f"<TiffData{text}>{uuid}</TiffData>"


def write(path: Path, planes: np.ndarray, xml: str, *, end: bytes = b"") -> Path:
    with tifffile.TiffWriter(path) as writer:
        for at, plane in enumerate(planes):
            described = xml if at == 0 else None
            writer.write(plane, photometric="minisblack", metadata=None, description=described)
    with path.open("ab") as file:
        file.write(end)
    return path


def is_image_of(path: Path, *planes: int) -> bool:
    """Whether a file decodes to these planes as its channels, by its path and, without it, by its bytes."""
    expected = np.moveaxis(PLANES[list(planes)], 0, 2)
    return np.array_equal(decode(path), expected) and np.array_equal(decode(path.read_bytes()), expected)


@pytest.mark.parametrize("end", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize("per_file", [1, 2])
@pytest.mark.parametrize("missing", [False, True])
def test_a_file_is_its_own_planes(tmp_path: Path, per_file: int, missing: bool, end: bytes) -> None:
    """Beside its sisters or without one: never zeros, never another file's plane."""
    blocks = "".join(block(c // per_file, page=c % per_file, c=c) for c in range(4))
    paths = []
    for number in range(4 // per_file):
        own = PLANES[number * per_file : (number + 1) * per_file]
        xml = describe(blocks, own=f"urn:uuid:{number}")
        paths.append(write(tmp_path / f"f{number}.ome.tif", own, xml, end=end))
    if missing:
        paths.pop().unlink()
    for number, path in enumerate(paths):
        assert is_image_of(path, *range(number * per_file, (number + 1) * per_file))


def test_a_set_with_z_c_and_t_in_its_names(tmp_path: Path) -> None:
    """As acquisition programs write it: one plane a file, all of them in the XML of each."""
    places = list(product(range(2), range(3), range(2)))
    blocks = "".join(block(number, c=c, z=z, t=t) for number, (c, z, t) in enumerate(places))
    for number, (c, z, t) in enumerate(places):
        blocks = blocks.replace(f"f{number}.ome.tif", f"scan_z{z}_c{c}_t{t}.ome.tif")
    for number, (c, z, t) in enumerate(places):
        xml = describe(blocks, own=f"urn:uuid:{number}", sizes="232")
        assert is_image_of(
            write(tmp_path / f"scan_z{z}_c{c}_t{t}.ome.tif", PLANES[[number]], xml, end=PADDING), number
        )


def test_planes_are_in_their_own_order_not_in_that_of_the_pages(tmp_path: Path) -> None:
    blocks = block(0, page=0, c=2) + block(0, page=1, c=0) + block(0, page=2, c=1) + block(1, c=3)
    assert is_image_of(write(tmp_path / "a.tif", PLANES[[2, 0, 1]], describe(blocks)), 0, 1, 2)


@pytest.mark.parametrize(
    "own",
    [
        block(0, page=0, count=2, c=0),
        block(0, page=0, count=2),  # FirstC is 0 where it is not said
        block(0, page=None, count=None),  # all pages of the file
        block(None, page=None, count=None),  # and without UUID: of this file
    ],
)
def test_a_block_may_stand_for_several_planes(tmp_path: Path, own: str) -> None:
    assert is_image_of(write(tmp_path / "a.tif", PLANES[:2], describe(own + block(1, count=2, c=2))), 0, 1)


def test_a_page_that_is_no_plane_is_left_out(tmp_path: Path) -> None:
    blocks = block(0, page=1, c=0) + block(1, c=1)
    assert is_image_of(write(tmp_path / "a.tif", PLANES[[5, 3]], describe(blocks)), 3)


def test_a_description_without_a_namespace(tmp_path: Path) -> None:
    blocks = block(0, c=0) + block(1, c=1)
    xml = describe(blocks).replace(OME, "<OME")
    write(tmp_path / "f1.ome.tif", PLANES[[1]], xml, end=PADDING)
    assert is_image_of(write(tmp_path / "f0.ome.tif", PLANES[[0]], xml, end=PADDING), 0)


def test_a_renamed_file_is_itself_and_never_the_file_it_was(tmp_path: Path) -> None:
    """Its description names it as before, and there may be another file of that name."""
    xml = describe("".join(block(0, page=c, c=c) for c in range(4)), own=None)
    write(tmp_path / "f0.ome.tif", PLANES[4:8], xml, end=PADDING)
    assert is_image_of(write(tmp_path / "renamed.tif", PLANES[:4], xml, end=PADDING), *range(4))


def test_one_page_that_the_set_does_not_name_is_read(tmp_path: Path) -> None:
    blocks = block(1, c=0) + block(2, c=1)
    assert is_image_of(write(tmp_path / "a.tif", PLANES[[3]], describe(blocks)), 3)


SEVERAL = block(1, c=0) + block(2, c=1)


@pytest.mark.parametrize(
    ("count", "xml", "reason"),
    [
        (2, describe(block(0) + block(0, page=1, c=1, z=1) + SEVERAL, sizes="441"), r"along C and Z"),
        (4, describe(block(0, count=4) + SEVERAL, sizes="222"), r"along C and Z"),
        (4, describe(block(0, count=4) + SEVERAL, sizes="222", order="XYTZC"), r"along Z and T"),
        (4, describe(block(0, page=None, count=None) + SEVERAL, sizes="222"), r"along C and Z"),
        (2, describe(block(0, count=4) + SEVERAL), r"fewer pages than its description"),
        (2, describe(SEVERAL), r"2 pages that the set does not name"),
        (2, describe(block(0) + block(1, c=1), images=2), r"pages of several images"),
    ],
)
def test_what_is_not_one_image_is_refused_with_the_set(
    tmp_path: Path, count: int, xml: str, reason: str
) -> None:
    path = write(tmp_path / "a.tif", PLANES[:count], xml)
    with pytest.raises(DataError, match=rf"OME-TIFF set \(well 7\).*{reason}.*save each as a separate file"):
        decode(path)


def test_a_set_without_uuids_is_refused_for_its_missing_pages(tmp_path: Path) -> None:
    """Each file says that it holds all channels, and holds one."""
    path = write(tmp_path / "a_c0.ome.tif", PLANES[[0]], describe(block(None, c=0), own=None))
    with pytest.raises(DataError, match="fewer pages than its description"):
        decode(path)


# ---- A companion file that describes the set


def binary_only(number: int, *, companion: str = "set.companion.ome") -> str:
    return (
        f'<?xml version="1.0"?>{OME} UUID="urn:uuid:{number}"><BinaryOnly MetadataFile="{companion}" '
        'UUID="urn:uuid:companion"/></OME>'
    )


def write_companion(folder: Path, blocks: str, *, sizes: str) -> None:
    text = describe(blocks, own="urn:uuid:companion", sizes=sizes)
    (folder / "set.companion.ome").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("end", [b"", PADDING], ids=["small", "large"])
def test_files_that_a_companion_describes(tmp_path: Path, end: bytes) -> None:
    """One page needs no description; several have the order that it says."""
    one = write(tmp_path / "f0.ome.tif", PLANES[[0]], binary_only(0), end=end)
    assert is_image_of(one, 0)
    two = write(tmp_path / "f1.ome.tif", PLANES[[2, 1]], binary_only(1), end=end)
    for read in (lambda: decode(two), lambda: decode(two.read_bytes())):
        with pytest.raises(
            DataError, match=r"2 pages, but set\.companion\.ome, .*not beside it; put it there"
        ):
            read()
    write_companion(tmp_path, block(0) + block(1, page=1, c=1) + block(1, page=0, c=2), sizes="311")
    np.testing.assert_array_equal(decode(two), np.moveaxis(PLANES[[1, 2]], 0, 2))
    np.testing.assert_array_equal(decode(str(two)), decode(two))
    assert is_image_of(one, 0)


def test_a_file_with_two_axes_in_a_companion_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f0.ome.tif", PLANES[:4], binary_only(0))
    write_companion(tmp_path, block(0, count=4) + block(1, count=4, t=1), sizes="222")
    with pytest.raises(DataError, match=r"OME-TIFF set \(well 7\), with pages along C and Z"):
        decode(path)
    write_companion(tmp_path, block(1, count=4), sizes="221")
    with pytest.raises(DataError, match="4 pages that the set does not name"):
        decode(path)
    (tmp_path / "set.companion.ome").write_text("<OME", encoding="utf-8")
    with pytest.raises(DataError, match=r"set\.companion\.ome"):
        decode(path)

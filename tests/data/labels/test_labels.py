"""Labels: which file of a list is which image, and lists of any length in little memory."""

import os
import random
import tracemalloc
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from byol.base.errors import DataError
from byol.data.labels.label_file import LabelFile, encode_labels, match_columns, match_labels, read_list


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    return path


def find_slowly(image: str, files: dict[str, str]) -> str | None:
    """One after the other: the same path; a longer one, if it is alone; the longest that is shorter."""
    if image in files:
        return image
    longer = [file for file in files if file.endswith("/" + image)]
    shorter = [file for file in files if image.endswith("/" + file)]
    if len({files[file] for file in longer}) > 1:
        raise DataError("several are longer")
    return longer[0] if longer else max(shorter, key=len, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_matching_as_one_after_the_other_would_do_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def draw_path() -> str:
        return "/".join(rng.choices("abc", k=rng.randint(1, 4)))

    files = {draw_path(): rng.choice(["x", "y", "10", "9"]) for _ in range(6)}
    images = list(dict.fromkeys(draw_path() for _ in range(6)))
    table = write_csv(tmp_path / "labels.csv", list(files.items()))
    try:
        expected = [find_slowly(image, files) for image in images]
    except DataError:
        with pytest.raises(DataError, match="could be the image"):
            match_labels(table, images)
        return
    found = [match for match in expected if match is not None]
    if len(found) > len(set(found)):
        with pytest.raises(DataError, match="matches several images"):
            match_labels(table, images)
    elif not found:
        with pytest.raises(DataError, match="none of its"):
            match_labels(table, images)
    else:
        numbers, class_names = match_labels(table, images)
        labels = [class_names[number] if number >= 0 else None for number in numbers]
        assert labels == [None if match is None else files[match] for match in expected]
        assert set(class_names) == {files[match] for match in found}


def test_paths_are_compared_after_they_are_made_plain(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "labels.csv", [("./p1//a.png", "x"), ("p2\\b.png", "y"), ("p3/../c.png", "x")]
    )
    numbers, class_names = match_labels(table, ["p1/a.png", "/data/p2/b.png", "c.png", "d.png"])
    assert numbers.tolist() == [0, 1, 0, -1] and class_names == ("x", "y")


def test_a_file_or_an_image_may_come_twice_if_nothing_contradicts(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.csv", [("a.png", "x"), ("b.png", "y"), ("a.png", "x")])
    numbers, _ = match_labels(table, ["p/a.png", "b.png", "p/a.png"])
    assert numbers.tolist() == [0, 1, 0]
    write_csv(table, [("a.png", "x"), ("a.png", "")])
    with pytest.raises(DataError, match=r"a\.png has two values of label, x and none; keep one"):
        match_labels(table, ["a.png"])


def test_files_that_are_found_but_have_no_label(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.csv", [("a.png", ""), ("b.png", "y")])
    with pytest.raises(DataError, match="has no label for any of the images"):
        match_labels(table, ["a.png"])


def test_no_images(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.csv", [("a.png", "x")])
    with pytest.raises(DataError, match=r"none of its 1 files .* there are no images"):
        match_labels(table, [])


def test_all_columns_are_matched_at_once(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(",plate,file,day,label\n0,p2,a.png,10,x\n1, p1 ,b.png,9,\n2,p3,no.png,9,y\n3,,d.png,,\n")
    found, _ = match_columns(table, ["b.png", "c.png", "p/a.png", "d.png"])
    assert {column: (numbers.tolist(), names) for column, (numbers, names) in found.items()} == {
        "plate": ([0, -1, 1, -1], ("p1", "p2")),
        "day": ([0, -1, 1, -1], ("9", "10")),
        "label": ([-1, -1, 0, -1], ("x",)),
    }
    table.write_text("file,notes\na.png,\n")
    ((numbers, names),) = match_columns(table, ["a.png"])[0].values()
    assert numbers.tolist() == [-1] and names == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plate\n", r"line 1 names the columns plate .*but no column `file`"),
        ("file,\na.png,0\n", "has no column besides `file`; add one"),
        ("file,plate,plate\na.png,1,2\n", "line 1 names a column twice"),
        ("file,plate\n", "the list names no file"),
        ("file,plate\nb.png,1\n", "none of its 1 files is among the images"),
        ("file,plate\na.png,1\na.png,2\n", r"a\.png has two values of plate, 1 and 2; keep one"),
        ("file,plate\na.png\n", "line 2 has 1 fields, not 2"),
    ],
)
def test_columns_that_cannot_be_matched(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        match_columns(tmp_path / "table.csv", ["a.png"])
    assert "\n" not in str(caught.value)


def test_whole_numbers_sort_as_numbers_and_others_as_text() -> None:
    numbers, class_names = encode_labels(["10", "9", "", "-1"])
    assert numbers.tolist() == [2, 1, -1, 0] and class_names == ("-1", "9", "10")
    numbers, class_names = encode_labels(["10", "9", "", "b"])
    assert numbers.tolist() == [0, 1, -1, 2] and class_names == ("10", "9", "b")


@pytest.mark.parametrize("value", ["--2", "-", "1-", "²", "9" * 5000])
def test_what_only_looks_like_a_whole_number_is_text(value: str) -> None:
    numbers, class_names = encode_labels(["10", value, "9"])
    assert class_names == tuple(sorted(["10", value, "9"])) and len(set(numbers.tolist())) == 3


def test_columns_are_named_in_any_case(tmp_path: Path) -> None:
    table = tmp_path / "labels.CSV"
    table.write_text("File,LABEL,Plate\na.png,x,p1\n")
    assert match_labels(table, ["a.png"])[1] == ("x",)
    assert list(match_columns(table, ["a.png"])[0]) == ["label", "Plate"]
    table.write_text("File,file,label\nb.png,a.png,x\n")
    assert match_labels(table, ["a.png"])[1] == ("x",)


@pytest.mark.parametrize("name", ["labels.tsv", "labels.txt", "labels"])
def test_labels_in_a_file_of_any_name(tmp_path: Path, name: str) -> None:
    """Excel's "Unicode text" is a .txt in UTF-16, with tabs."""
    (tmp_path / name).write_bytes("file\tlabel\na.png\tx\n".encode("utf-16"))
    assert match_labels(tmp_path / name, ["a.png"])[1] == ("x",)


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_long_lists_are_no_strings(tmp_path: Path, suffix: str) -> None:
    """20,000 lines here; a string of each path takes 70 bytes, and as many in a list 8 more."""
    path, num_lines = tmp_path / f"list{suffix}", 20_000
    names = [f"folder/image_{number:06d}.png" for number in range(num_lines)]
    if suffix == ".csv":
        write_csv(path, [(name, f"class {number % 7}") for number, name in enumerate(names)])
    else:
        path.write_text("\n".join(names))
    tracemalloc.start()
    listed = read_list(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(listed.files) == names and len(listed.labels) == num_lines and listed.notes == ()
    assert peak < 1.5 * num_lines * (len(names[0]) + 8 + 7 + 8) + 350_000


# ---- Tables as people write them

NAMES = [f"{number:04d}" + (".JPG" if number % 4 < 2 else ".jpg") for number in range(20)]
CLASSES = ["abcd"[number % 4] for number in range(20)]


def find_all(
    path: Path, content: str | bytes, images: list[str] = NAMES, *, share: float = 0.1
) -> tuple[list[str | None], str]:
    """The class of each image, and what is said of the table."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = LabelFile(path)
    numbers, words = table.match(images)["label"]
    table.check(max_unmatched=share)
    notes = list(table.notes())
    assert all("\n" not in note for note in notes)
    return [words[number] if number >= 0 else None for number in numbers], " | ".join(notes)


def rows_of(
    files: Sequence[str], labels: Sequence[str] = CLASSES, *, head: str = "file,label", separator: str = ","
) -> str:
    return f"{head}\n" + "".join(
        f"{file}{separator}{label}\n" for file, label in zip(files, labels, strict=True)
    )


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (NAMES, ""),
        ([name.lower() for name in NAMES], "10 exactly, 10 except for letter case (0000.jpg for 0000.JPG)"),
        ([name[:4] for name in NAMES], "20 except for missing suffix (0000 for 0000.JPG)"),
        (
            [f"{int(name[:4])}{name[4:]}" for name in NAMES],
            "20 except for leading zeros (0.JPG for 0000.JPG)",
        ),
        (
            [f"{int(name[:4])}.0" for name in NAMES],
            "missing suffix and a number with a decimal point (0.0 for",
        ),
        ([f"{name[:4]}.png" for name in NAMES], "20 except for suffix (0000.png for 0000.JPG)"),
        ([f" {name}\t" for name in NAMES], "20 except for white space or quotes"),
        ([f"'{name}'" for name in NAMES], "20 except for white space or quotes"),
        ([f"./{name}" for name in NAMES], ""),
        ([f"images\\{name}" for name in NAMES], r"20 by the end of the path (images\0000.JPG for 0000.JPG)"),
        ([f"C:\\\\data\\\\{name}" for name in NAMES], "20 by the end of the path"),
        ([f"D:\\Data\\{name.lower()}" for name in NAMES], "10 except for folders and letter case"),
        (
            [name if at < 10 else name[:4] for at, name in enumerate(NAMES)],
            "10 exactly, 10 except for missing",
        ),
    ],
)
def test_names_that_are_spelled_otherwise_are_matched_and_told(
    tmp_path: Path, files: list[str], rule: str
) -> None:
    found, notes = find_all(tmp_path / "labels.csv", rows_of(files))
    assert found == CLASSES
    assert rule in notes and bool(rule) == bool(notes)


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_one_name_in_two_unicode_forms(tmp_path: Path, written: str, stored: str) -> None:
    names = [f"Käfer/Größe_{number:04d}.jpg" for number in range(20)]
    files = [unicodedata.normalize(written, name) for name in names]
    images = [unicodedata.normalize(stored, name) for name in names]
    found, notes = find_all(tmp_path / "labels.csv", rows_of(files, ["Käfer", "x"] * 10), images)
    assert found == ["Käfer", "x"] * 10 and "Unicode form (NFC, NFD)" in notes


@pytest.mark.parametrize(
    "content",
    [
        rows_of(NAMES).encode("utf-8-sig"),
        rows_of(NAMES, head="file\tlabel", separator="\t").encode("utf-16"),
        rows_of(NAMES).encode("utf-16-le"),
        rows_of(NAMES).encode("utf-16-be"),
        rows_of(NAMES).replace("\n", "\r").encode(),
        rows_of(NAMES).replace("\n", "\r\n").encode(),
        b"sep=;\n" + rows_of(NAMES, head="file;label", separator=";").encode(),
        rows_of(
            NAMES, [f"{label};0,5" for label in CLASSES], head="file;label;score", separator=";"
        ).encode(),
        rows_of(NAMES, [f"{label}|9" for label in CLASSES], head='file|label|"a, b"', separator="|").encode(),
        rows_of(NAMES, [f"{label}," for label in CLASSES], head="file,label,").encode(),
        rows_of(NAMES, [f"{label}," for label in CLASSES]).encode() + b",,\n",
        rows_of([f"{at},{name}" for at, name in enumerate(NAMES)], head=",file,label").encode(),
        rows_of(NAMES, [f"{label},1,2" for label in CLASSES], head="file,label,score,score").encode(),
        b"\n , \n" + rows_of(NAMES).encode(),
        b"# labelled by two people\n#\n" + rows_of(NAMES).encode(),
        b"sep=|\n\n" + rows_of(NAMES, head="file|label", separator="|").encode(),
        b"\xef\xbb\xbf" + rows_of(NAMES).encode("utf-8-sig"),
        rows_of(
            NAMES, [f"{label}\u200b" if at % 3 else f"\u00a0{label}" for at, label in enumerate(CLASSES)]
        ).encode(),
        rows_of(NAMES, [f'"{label}"' for label in CLASSES], head='"file","label\n"').encode(),
    ],
)
def test_encodings_separators_and_ends_of_lines(tmp_path: Path, content: bytes) -> None:
    assert find_all(tmp_path / "labels.csv", content) == (CLASSES, "")


def test_windows_1252_is_read_and_told(tmp_path: Path) -> None:
    images = [f"Käfer_{number}.jpg" for number in range(20)]
    content = rows_of(images, ["größe", "b"] * 10).encode("cp1252")
    found, notes = find_all(tmp_path / "labels.csv", content, images)
    assert found == ["größe", "b"] * 10
    assert "not UTF-8" in notes and "cp1252" in notes and "'größe'" in notes and "encoding" in notes
    # The same bytes as names on the disk: nothing is to be translated.
    raw = [name.encode("cp1252").decode("utf-8", "surrogateescape") for name in images]
    assert find_all(tmp_path / "labels.csv", content, raw)[0] == ["größe", "b"] * 10


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("filename,target", "'filename' as `file` and 'target' as `label`"),
        ("Image ID,Class", "'Image ID' as `file` and 'Class' as `label`"),
        ("file_path,category", "'file_path' as `file` and 'category' as `label`"),
        ("File,LABEL", ""),
    ],
)
def test_common_names_of_columns(tmp_path: Path, head: str, told: str) -> None:
    found, notes = find_all(tmp_path / "labels.csv", rows_of(NAMES, head=head))
    assert found == CLASSES and told in notes and bool(told) == bool(notes)


def test_values_that_are_no_class_and_numbers_that_pandas_wrote(tmp_path: Path) -> None:
    labels = ["", "NaN", "NA", "null", "-", *(f"{number % 3}.0" for number in range(15))]
    found, notes = find_all(tmp_path / "labels.csv", rows_of(NAMES, labels))
    assert found[:5] == [None, None, None, None, "-"]
    assert (
        "3 cells of `label` hold NaN or NA or null, which is read as a missing value" in notes
        and "1 cells of `label` are empty" in notes
    )
    labels[4] = ""
    assert find_all(tmp_path / "labels.csv", rows_of(NAMES, labels))[0][5:] == [
        str(at % 3) for at in range(15)
    ]
    assert set(find_all(tmp_path / "labels.csv", rows_of(NAMES, ["True", "False"] * 10))[0]) == {
        "True",
        "False",
    }
    notes = find_all(tmp_path / "labels.csv", rows_of(NAMES, ["Cat", "cat"] * 10))[1]
    assert "'Cat' and 'cat' differ only in spelling" in notes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ["is empty", "write file,label"]),
        (b"file,label\n", ["names no file"]),
        (b"PK\x03\x04" + b"x" * 50, ["Excel", "export it as CSV"]),
        (b"\x1f\x8b" + b"x" * 50, ["gzip", "unpack"]),
        (rows_of(NAMES).encode("utf-32"), ["UTF-32", "save it as UTF-8"]),
        (b"\x80\x04\x95" + b"x" * 50, ["a pickle"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
        (b'[{"file": "0000.JPG", "label": "a"}]', ["JSON", "export it as CSV"]),
        (b"<html><body>404</body></html>", ["a web page", "export it as CSV"]),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", ["a JPEG image", "give the file of its labels"]),
        (b"\xef\xbb\xbf", ["is empty"]),
        (b"\n\r\n , \n", ["is empty"]),
        (rows_of(NAMES, head="file label", separator=" "), ["columns file label", "commas"]),
        (rows_of(NAMES) + "x.jpg\n", ["line 22 has 1 fields", "add the missing"]),
        (rows_of([f'"{name}' if at == 4 else name for at, name in enumerate(NAMES)]), ["line 6", "quote"]),
        (rows_of(["1.2E+05", "1.2E+05"], ["a", "b"]), ["two values of label, a and b", "rounded", "text"]),
        (rows_of([*NAMES, NAMES[0]], [*CLASSES, ""]), ["0000.JPG has two values of label, a and none"]),
        (rows_of(NAMES).encode().replace(b"0003", b"00\x003"), ["byte 46 is NUL", "export it again"]),
        (b"\xff\xfe" + rows_of(NAMES).encode("utf-16-le") + b"\x00", ["UTF-16", "save it as UTF-8"]),
        (rows_of(NAMES, head="0000.JPG,a"), ["line 1 already names an image", "file,label"]),
        (rows_of(NAMES, head="7,a"), ["line 1 names the columns 7, a", "`file`", "above line 1"]),
        (rows_of(NAMES, head="file,species"), ["only species", "rename", "to label"]),
        (rows_of(NAMES, [f"{label},1" for label in CLASSES], head="file,label,label"), ["twice, label"]),
        (
            rows_of(NAMES, [f"{label},1" for label in CLASSES], head="file,class,category"),
            ["class and category"],
        ),
        (rows_of([f"{at},{name}" for at, name in enumerate(NAMES)]), ["line 2 has 3 fields, not 2"]),
        ('file,label\n"a.png,x\n', ["quote that is not closed"]),
        (rows_of([*NAMES[1:], ""]), ["line 21 names no file"]),
        (rows_of([f"{at}.2E+05" for at in range(20)]), ["none of its 20", "0.2E+05", "rounded", "text"]),
        (rows_of([f"IMG{name}" for name in NAMES]), ["IMG0000.JPG", "is 0000.JPG", "adds 'IMG'"]),
        (rows_of([f"/x/test/{name}" for name in NAMES]), ["0000.JPG, is in another folder"]),
        (rows_of([*NAMES, "x.jpg"], [*CLASSES, "new"]), ["of the class new", "x.jpg", "max_unmatched=1"]),
        (
            rows_of([*NAMES, "x.jpg", "y.jpg", "z.jpg"], [*CLASSES, *"aaa"]),
            ["3 of its 23", "max_unmatched=1"],
        ),
        (rows_of([*NAMES, NAMES[0]], [*CLASSES, "b"]), ["0000.JPG has two values of label, a and b"]),
        (rows_of(["0000.jpg", "0000.Jpg", *NAMES[1:]], ["a", "b", *CLASSES[1:]]), ["0000.jpg and 0000.Jpg"]),
        (rows_of(["0000.bmp", "0000.gif", *NAMES[1:]], ["a", "b", *CLASSES[1:]]), ["0000.bmp and 0000.gif"]),
    ],
)
def test_what_is_refused_is_told_with_an_example(
    tmp_path: Path, content: str | bytes, told: list[str]
) -> None:
    path = tmp_path / "labels.csv"
    images = [name if "/x/test" not in str(content) else f"train/{name}" for name in NAMES]
    with pytest.raises(DataError) as caught:
        find_all(path, content, images)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert [word for word in told if word not in str(caught.value)] == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "dangling"])
def test_what_is_no_file_is_refused_with_the_next_step(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labels.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # must not be waited for
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"labels\.csv: .*; give a CSV or text file"):
        LabelFile(path)


def test_thousands_are_no_decimals(tmp_path: Path) -> None:
    """`1,000` may be a thousand, and is not taken for 1."""
    images = ["1.jpg", "2.jpg", "1000.jpg", "2000.jpg"]
    with pytest.raises(DataError, match=r"1,000, which is 1000\.jpg except for thousands separators"):
        find_all(tmp_path / "labels.csv", rows_of(['"1,000"', '"2,000"'], ["a", "b"]), images)
    decimals = rows_of(
        ["1,0", "2,00", "1000.0", "2000.000000"], list("abcd"), head="file;label", separator=";"
    )
    assert find_all(tmp_path / "labels.csv", decimals, images)[0] == list("abcd")


def test_classes_that_differ_by_spelling_alone_are_told(tmp_path: Path) -> None:
    for labels, pair in (
        (["00", "0"], "'00' and '0'"),
        (["big cat", "Big_Cat"], "'big cat' and 'Big_Cat'"),
        (["ab", "a\u200bb"], "'ab' and 'a\\u200bb'"),
        (["1", "x", "1.0"], "'1' and '1.0'"),
    ):
        files = NAMES[: 6 * len(labels)]
        notes = find_all(tmp_path / "labels.csv", rows_of(files, (labels * 20)[: len(files)]))[1]
        assert f"{pair} differ only in spelling" in notes
    assert find_all(tmp_path / "labels.csv", rows_of(NAMES, ["1", "-1", "a-1", "a1"] * 5))[1] == ""


def test_a_header_that_is_windows_1252_is_shown_decoded(tmp_path: Path) -> None:
    content = rows_of(NAMES, [f"{label},x" for label in CLASSES], head="file,label,Größe").encode("cp1252")
    assert "gives 'Größe'" in find_all(tmp_path / "labels.csv", content)[1]
    columns, _ = match_columns(tmp_path / "labels.csv", NAMES)
    assert list(columns) == ["label", "Größe"]


def test_a_lost_name_is_compared_with_the_images_of_all_sets(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "labels.csv", [*zip(NAMES, CLASSES, strict=True), ("0003_mask.jpg", "a")])
    table = LabelFile(path)
    table.match(NAMES[:12])
    table.match(NAMES[12:])
    assert any("nearest image is 0003.jpg: the list adds '_mask'" in note for note in table.notes())


def test_utf_8_that_was_read_as_windows_1252_is_named(tmp_path: Path) -> None:
    images = [f"Käfer_{number}.jpg" for number in range(20)]
    with pytest.raises(DataError, match=r"KÃ¤fer_0\.jpg, which is Käfer_0\.jpg in a wrong encoding"):
        find_all(
            tmp_path / "labels.csv", rows_of([name.encode().decode("cp1252") for name in images]), images
        )


@pytest.mark.parametrize("suffix", [".png", ".PNG", ""])
def test_names_without_folders_must_be_of_one_image(tmp_path: Path, suffix: str) -> None:
    files, labels = [f"{number}{suffix}" for number in range(20)], CLASSES
    one = [f"p{number % 3}/{number}.png" for number in range(20)]
    assert find_all(tmp_path / "labels.csv", rows_of(files, labels), one)[0] == CLASSES
    both = [f"{plate}/{number}.png" for plate in "pq" for number in range(20)]
    with pytest.raises(
        DataError, match=rf"0{suffix} matches several images, p/0\.png and q/0\.png; write more"
    ):
        find_all(tmp_path / "labels.csv", rows_of(files, labels), both)


def test_the_nearer_spelling_wins_and_what_stays_open_is_refused(tmp_path: Path) -> None:
    images = ["a.jpg", "a.png", "b.jpg"]
    assert find_all(tmp_path / "labels.csv", rows_of(["a.JPG", "a.PNG"], ["x", "y"]), images)[0] == [
        "x",
        "y",
        None,
    ]
    with pytest.raises(DataError, match=r"a matches several images, a\.jpg and a\.png"):
        find_all(tmp_path / "labels.csv", rows_of(["a", "b"], ["x", "y"]), images)
    with pytest.raises(DataError, match=r"a\.JPG matches several images, a\.jpg and A\.jpg"):
        find_all(tmp_path / "labels.csv", rows_of(["a.jpg", "a.JPG"], ["x", "y"]), ["a.jpg", "A.jpg"])
    twice = rows_of(["a.bmp", "a.gif", "b.jpg"], ["x", "x", "y"])  # two spellings that say the same
    assert find_all(tmp_path / "labels.csv", twice, ["a.png", "b.jpg"])[0] == ["x", "y"]


def test_files_of_several_folders_and_images_of_one(tmp_path: Path) -> None:
    files = [f"{plate}/{name}" for plate in ("p1", "p2") for name in NAMES]
    path = write_csv(tmp_path / "labels.csv", list(zip(files, CLASSES + CLASSES[::-1], strict=True)))
    with pytest.raises(DataError, match=r"could be the image 0000\.JPG: p1/0000\.JPG and p2/0000\.JPG"):
        match_labels(path, NAMES)
    numbers, words = match_labels(path, NAMES, folder=tmp_path / "p2")
    assert [words[number] for number in numbers] == CLASSES[::-1]


def test_labels_of_two_sets_are_counted_together(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "labels.csv", list(zip(NAMES, CLASSES, strict=True)))
    table = LabelFile(path)
    table.match(NAMES[:12])
    with pytest.raises(DataError, match="8 of its 20 files match no image"):
        table.check(max_unmatched=0.1)
    table.check(max_unmatched=0.4)
    table.match(NAMES[12:19])
    table.check(max_unmatched=0.1)
    assert [
        note for note in table.notes() if "left out, because no image matches: 1 of the 20 labels" in note
    ]


def test_metadata_is_matched_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "plates.csv"
    path.write_bytes(
        rows_of([name.lower() for name in NAMES], head="id\tplate", separator="\t").encode("utf-16")
    )
    columns, notes = match_columns(path, NAMES, max_unmatched=0.1)
    assert columns["plate"][1] == tuple("abcd") and any("10 except for letter case" in note for note in notes)
    with pytest.raises(DataError, match="10 of its 20 files match no image"):
        match_columns(path, NAMES[:10], max_unmatched=0.1)


def test_many_labels_are_matched_by_a_rule(tmp_path: Path) -> None:
    images = [f"p{number % 7}/IMG_{number:07d}.JPG" for number in range(20_000)]
    path = write_csv(
        tmp_path / "labels.csv", [(name.lower(), str(at % 10)) for at, name in enumerate(images)]
    )
    numbers, _ = match_labels(path, images)
    assert (numbers == np.arange(20_000) % 10).all()

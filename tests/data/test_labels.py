"""Labels: which file of a list is which image, and lists of any length in little memory."""

import random
import tracemalloc
from pathlib import Path

import pytest

from byol.data.labels import encode_labels, match_columns, match_labels, read_list
from byol.errors import DataError


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    return path


def find_slowly(image: str, files: dict[str, str]) -> str | None:
    """One after the other: the same path; a longer one, if it is alone; the longest that is shorter."""
    if image in files:
        return image
    longer = [file for file in files if file.endswith("/" + image)]
    shorter = [file for file in files if image.endswith("/" + file)]
    return longer[0] if len(longer) == 1 else max(shorter, key=len, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_matching_as_one_after_the_other_would_do_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def draw_path() -> str:
        return "/".join(rng.choices("abc", k=rng.randint(1, 4)))

    files = {draw_path(): rng.choice(["x", "y", "10", "9"]) for _ in range(6)}
    images = list(dict.fromkeys(draw_path() for _ in range(6)))
    expected = [find_slowly(image, files) for image in images]
    found = [match for match in expected if match is not None]
    table = write_csv(tmp_path / "labels.csv", list(files.items()))
    if len(found) > len(set(found)):
        with pytest.raises(DataError, match="fits several images"):
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
    with pytest.raises(DataError, match=r"a\.png has two labels, x and ; keep one"):
        match_labels(table, ["a.png"])


def test_files_that_are_found_but_have_no_label(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.csv", [("a.png", ""), ("b.png", "y")])
    with pytest.raises(DataError, match="its files that are among the images have no label"):
        match_labels(table, ["a.png"])


def test_no_images(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.csv", [("a.png", "x")])
    with pytest.raises(DataError, match=r"none of its 1 files .* named like \(there are none\)"):
        match_labels(table, [])


def test_all_columns_are_matched_at_once(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(",plate,file,day,label\n0,p2,a.png,10,x\n1, p1 ,b.png,9,\n2,p3,no.png,9,y\n3,,d.png,,\n")
    found = match_columns(table, ["b.png", "c.png", "p/a.png", "d.png"])
    assert {column: (numbers.tolist(), names) for column, (numbers, names) in found.items()} == {
        "plate": ([0, -1, 1, -1], ("p1", "p2")),
        "day": ([0, -1, 1, -1], ("9", "10")),
        "label": ([-1, -1, 0, -1], ("x",)),
    }
    table.write_text("file,notes\na.png,\n")
    ((numbers, names),) = match_columns(table, ["a.png"]).values()
    assert numbers.tolist() == [-1] and names == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plate\n", r"line 1 names the columns \['plate'\]; a column `file` is needed"),
        ("file,\na.png,0\n", "has no column beside `file`; add one"),
        ("file,plate,plate\na.png,1,2\n", "line 1 names a column twice"),
        ("file,plate\n", "the list names no file"),
        ("file,plate\nb.png,1\n", "none of its 1 files is among the images"),
        ("file,plate\na.png,1\na.png,2\n", r"a\.png has two plates, 1 and 2; keep one"),
        ("file,plate\na.png\n", "row 2 has 1 fields or no file, not 2 fields"),
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
    assert list(match_columns(table, ["a.png"])) == ["label", "Plate"]
    table.write_text("File,file,label\nb.png,a.png,x\n")
    assert match_labels(table, ["a.png"])[1] == ("x",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file;label\na.png;x\n", "has semicolons between its columns; save it as UTF-8 with commas"),
        (b"Label\tFile\nx\ta.png\n", "has tabs between its columns; save it as UTF-8 with commas"),
        (b'file;"a, b"\na.png;x\n', "has semicolons between its columns; save it as UTF-8 with commas"),
        ("file,label\na.png,x\n".encode("utf-16"), "is UTF-16, or no text; save it as UTF-8"),
        ("file,label\na.png,x\n".encode("utf-16-be"), "is UTF-16, or no text; save it as UTF-8"),
    ],
)
def test_tables_of_other_programs_are_told_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    for read in (match_labels, match_columns):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "table.csv", ["a.png"])
        assert str(caught.value).startswith(f"{tmp_path / 'table.csv'}: {message}")


def test_labels_without_the_suffix_of_a_table(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "labels.tsv", [("a.png", "x")])
    with pytest.raises(DataError, match=r"its name does not end in \.csv; save it as labels\.csv, with"):
        match_labels(table, ["a.png"])


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
    files, labels = read_list(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(files) == names and len(labels) == num_lines
    assert peak < 1.5 * num_lines * (len(names[0]) + 8 + 7 + 8) + 300_000

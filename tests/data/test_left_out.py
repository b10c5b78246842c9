"""A folder of everything that people have beside their images: `byol check` says it all on one screen."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.auto import resolve
from byol.base import disk
from byol.cli.main import main
from byol.config import Config
from byol.data.decode import content
from byol.training.step_benchmark import StepBenchmark
from edits import edit_json

Capture = pytest.CaptureFixture[str]
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + np.random.default_rng(0).integers(0, 255, 999, "u1").tobytes()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:6fd5d72fe458\nsize 90405\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder; steps are not measured, no package for more formats, no pauses."""

    def benchmark(config: Config, **images: object) -> StepBenchmark:
        return StepBenchmark(config.batch_size, config.accumulation_steps, 0.5, 10**9, 2 * 10**9)

    monkeypatch.setattr(resolve, "choose_batch", benchmark)
    monkeypatch.setattr(resolve, "benchmark_step", benchmark)
    monkeypatch.setattr(content, "open_package", lambda name: False)
    monkeypatch.setattr(disk, "PAUSES_S", (0.0,))
    monkeypatch.chdir(tmp_path)


def draw(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((40, 40))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_folder(folder: Path) -> None:
    """About every kind of file that has been found in folders of images."""
    folder.mkdir()
    files: dict[str, bytes] = {f"IMG_{i:04d}.jpg": encode(draw(i), "jpeg", quality=90) for i in range(30)}
    for i, (suffix, format) in enumerate(
        [
            ("jfif", "jpeg"),
            ("jpe", "jpeg"),
            ("jp2", "jpeg2000"),
            ("avif", "avif"),
            ("webp", "webp"),
            ("dib", "bmp"),
            ("ppm", "ppm"),
        ]
    ):
        files[f"web_{i}.{suffix}"] = encode(draw(100 + i), format)
    cut_out = draw(200).convert("RGBA")
    cut_out.putalpha(Image.fromarray(np.triu(np.full((40, 40), 255, np.uint8))))
    icon = Image.new("RGBA", (40, 40))
    icon.putalpha(Image.fromarray(np.triu(np.full((40, 40), 255, np.uint8))))
    whole = encode(draw(300).resize((160, 120)), "jpeg", quality=90)
    middle = len(whole) // 2
    files |= {
        "no_suffix": encode(draw(201), "png"),
        "1.2.840.17": encode(draw(202), "tiff"),
        "really_png.jpg": encode(draw(203), "png"),
        "really_webp.jpg": encode(draw(204), "webp"),
        "cut_out.png": encode(cut_out, "png"),
        "icon.png": encode(icon, "png"),
        "moving.gif": encode(draw(205), "gif", save_all=True, append_images=[draw(206)]),
        "no_end.jpg": encode(draw(207), "jpeg")[:-2],
        "lost_block.jpg": whole[:middle] + whole[middle + 300 :],
        "half.jpg": encode(draw(208), "jpeg")[:900],
        "heic.jpg": HEIC,
        "heic.png": HEIC,
        "page.jpg": b"<!DOCTYPE html><html><title>429</title></html>",
        "error.png": b'<?xml version="1.0"?><Error/>',
        "message.jpg": b'{"message": "Not Found"}',
        "pointer.tif": LFS,
        "empty.png": b"",
        "archive.jpg": b"PK\x03\x04" + bytes(99),
        "movie.jpg": b"\0\0\0\x14ftypqt  " + bytes(99),
        "paper.png": b"%PDF-1.7\n" + bytes(99),
        "fork.jpg": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ",
        "zeros.jpg": bytes(2000),
        "notes.jpg": b"a few words of text\n",
        **{f"IMG_{i}.HEIC": HEIC for i in range(200)},
        **{f"IMG_{i}.MOV": b"x" for i in range(5)},
        **{f"IMG_{i}.AAE": b"<plist/>" for i in range(5)},
        "labels.csv": b"file,label\n",
        "Thumbs.db": b"x",
        ".DS_Store": b"x",
        "._IMG_1.jpg": b"\0\x05\x16\x07",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "@eaDir").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to(folder)


def check(capsys: Capture, *arguments: str, code: int) -> list[str]:
    assert main(["check", *arguments, "trainer.num_workers=1", "trainer.device=cpu"]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return (said.out + said.err).splitlines()


def test_everything_at_once_in_under_40_lines(capsys: Capture) -> None:
    make_folder(Path("images"))
    lines = check(capsys, "images", "data.max_bad=0.5", code=0)
    assert len(lines) < 40, "\n".join(lines)
    text = "\n".join(lines)
    for part in (
        # passed by, with three names and a way to change it
        "200 .heic (IMG_0.HEIC, IMG_1.HEIC, IMG_10.HEIC, ...; to read them: pip install pillow-heif)",
        "5 .aae (IMG_0.AAE, IMG_1.AAE, IMG_2.AAE, ...), 5 .mov (",
        "1 .csv (labels.csv)",
        "hidden files and folders, and those of the system: 4 (",
        "pipes, sockets and devices: 1 (pipe.png)",
        # read
        "because their content is an image: 2 (1.2.840.17, no_suffix)",
        # unreadable, each kind for itself
        "unreadable and left out: 15 of ",
        "1 file (gone.png): no such file",
        "1 file (notes.jpg): is text, not an image of a known format",
        "2 files (heic.jpg, heic.png): is a HEIC photo",
        "1 file (page.jpg): is a web page (HTML)",
        "1 file (error.png): is XML",
        "1 file (message.jpg): is JSON",
        "1 file (pointer.tif): is a Git LFS pointer, not the image itself; run: git lfs pull",
        "1 file (empty.png): the file is empty",
        "1 file (archive.jpg): is an archive (ZIP); unpack it",
        "1 file (movie.jpg): is a video",
        "1 file (paper.png): is a PDF",
        "1 file (fork.jpg): is a resource fork of macOS",
        "1 file (zeros.jpg): begins with zeros",
        "1 file (half.jpg): is damaged or cut short",
        # changed
        "(cut_out.png): transparent: laid on white",
        "(icon.png): of one colour, with the shape in the transparency only",
        "(moving.gif): animations: only the first frame is used",
        "(no_end.jpg): JPEG without an end mark",
        "(lost_block.jpg): JPEG with damaged data",
        "(really_png.jpg): named .jpg, but read as PNG",
        "(really_webp.jpg): named .jpg, but read as WebP",
    ):
        assert part in text, f"{part}\n{text}"
    assert lines[-1] == "ready: training may start"


def test_train_and_embed_say_the_same(capsys: Capture) -> None:
    make_folder(Path("images"))
    tiny = ["network.name=resnet10t", "data_transforms.input_shape=[8,8,3]", "trainer.batch_size=8"]
    tiny += ["network.projection_head.mlp_hidden_size=16", "network.projection_head.projection_size=8"]
    tiny += ["trainer.max_epochs=1", "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_workers=1"]
    checked = check(capsys, "images", "data.max_bad=0.5", *tiny[1:3], code=0)
    first = next(i for i, line in enumerate(checked) if line.startswith("skipped"))
    summary = [
        line
        for line in checked[first:]
        if not line.startswith(("random changes", "flips", "network", "report"))
    ]
    assert main(["train", "images", "-o", "runs/a", *tiny, "data.max_bad=0.5"]) == 0
    trained = capsys.readouterr().out.splitlines()
    assert main(["embed", "runs/a", "images", "-o", "f.csv"]) == 0
    embedded = capsys.readouterr().err.splitlines()
    groups = [line for line in summary if line.startswith(("skipped", "read files", "  "))]
    assert len(groups) > 12
    for line in groups:
        assert line in trained and line in embedded
    changed = [line for line in embedded if "laid on white" in line or "first frame" in line]
    assert len(changed) == 3 and all(line in trained and line in checked for line in changed)
    assert Path("f.left_out.csv").read_text(encoding="utf-8").count("\n") == 16


def test_what_a_run_did_with_transparency_is_done_again(capsys: Capture) -> None:
    import byol

    Path("images").mkdir()
    for number in range(16):
        image = draw(number).convert("RGBA")
        image.putalpha(Image.fromarray(np.triu(np.full((40, 40), 255, np.uint8))))
        image.save(f"images/{number:02d}.png")
    tiny = ["network.name=resnet10t", "data_transforms.input_shape=[8,8,3]", "trainer.batch_size=8"]
    tiny += ["network.projection_head.mlp_hidden_size=16", "network.projection_head.projection_size=8"]
    tiny += ["trainer.max_epochs=1", "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_workers=1"]
    seen = {}
    for choice in ("auto", "drop"):
        assert main(["train", "images", "-o", f"runs/{choice}", *tiny, f"data.alpha={choice}"]) == 0
        encoder = byol.load(f"runs/{choice}", device="cpu")
        assert encoder.spec.alpha == choice
        packs = [path for path in Path("runs/packs").iterdir() if ("drop" in path.name) == (choice == "drop")]
        packed = byol.data.pack.packed.open_pack(next(path for path in packs if path.is_dir()))
        np.testing.assert_allclose(encoder.embed("images"), encoder.embed_packed(packed), atol=1e-5)
        seen[choice] = np.array(packed.images)
    assert not np.array_equal(seen["auto"], seen["drop"])
    # An encoder of an earlier version does not say it, and transparency was dropped.
    edit_json(Path("runs/drop/encoder.json"), remove=["alpha"])
    assert byol.load("runs/drop", device="cpu").spec.alpha == "drop"
    capsys.readouterr()


def test_clipped_values_are_said_alike_by_check_train_and_embed(capsys: Capture) -> None:
    """Some hot pixels in 16-bit images lie beyond white; with data.clip=0 nothing does."""
    Path("images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):
        image = rng.integers(100, 2000, (10, 10)).astype(np.uint16)
        image[number % 10, 3] = 60_000 if number < 1 else 1000
        Image.fromarray(image).save(f"images/{number:02d}.png")
    tiny = ["network.name=resnet10t", "data_transforms.input_shape=[8,8,1]", "trainer.batch_size=8"]
    tiny += ["network.projection_head.mlp_hidden_size=16", "network.projection_head.projection_size=8"]
    tiny += ["trainer.max_epochs=1", "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_workers=1"]
    tiny += ["data.stored_px=10"]
    for run, clip, number in (("a", [], 1), ("b", ["data.clip=0"], 0)):
        said = [
            line for line in check(capsys, "images", *tiny[1:2], tiny[-1], *clip, code=0) if "clips" in line
        ]
        assert main(["train", "images", "-o", f"runs/{run}", *tiny, *clip]) == 0
        said += [line for line in capsys.readouterr().out.splitlines() if "clips" in line]
        assert main(["embed", f"runs/{run}", "images", "-o", "f.csv"]) == 0
        said += [line for line in capsys.readouterr().err.splitlines() if "of all values" in line]
        assert len(said) == 3 * number and len(set(said)) == number, said
        assert all("0.12 % of all values" in line and "data.clip=0" in line for line in said), said
    assert len([path for path in Path("runs/packs").iterdir() if path.is_dir()]) == 2

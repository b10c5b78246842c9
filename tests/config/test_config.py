"""The configuration: layers, the classic file, every refusal with its place, presets that are complete."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from byol.base.errors import ConfigError
from byol.config import Config, diff_configs, dump_config, json_schema, load_config, load_partial

PRESETS = ("classic", "paper", "default", "demo")
SETTLED = ("data_transforms.input_shape=[96,96,null]", "trainer.batch_size=64", "trainer.max_epochs=100")
CLASSIC = """\
network:
  name: resnet18 # base encoder. choose one of resnet18 or resnet50

  # Specify a folder containing a pre-trained model to fine-tune. If training from scratch, pass None.
  fine_tune_from: 'resnet-18_40-epochs'

  # configurations for the projection and prediction heads
  projection_head:
    mlp_hidden_size: 512 # Original implementation uses 4096
    projection_size: 128 # Original implementation uses 256

data_transforms:
  s: 1
  input_shape: (96,96,3)

trainer:
  batch_size: 64 # Original implementation uses 4096
  m: 0.996 # momentum update
  checkpoint_interval: 5000
  max_epochs: 40 # Original implementation uses 1000
  num_workers: 4 # number of worker for the data loader

optimizer:
  params:
    lr: 0.03
    momentum: 0.9
    weight_decay: 0.0004
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path | None, *overrides: str, preset: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, preset=preset)
    return [line.replace(f"{path}", "my.yaml") for line in str(caught.value).split("\n")]


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


# ---- The classic file


def test_a_classic_file_means_what_it_meant(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CLASSIC), [], preset=None)
    assert config.preset == "classic" and config.network.name == "resnet18"
    assert config.network.fine_tune_from == "resnet-18_40-epochs" and config.network.stem == "standard"
    assert (config.view_px, config.channels) == (96, 3)
    assert (config.data.source, config.data.split) == ("stl10", None)
    optimizer, trainer = config.optimizer, config.trainer
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_epochs) == ("sgd", "constant", 0)
    assert (optimizer.params.lr, optimizer.params.momentum, optimizer.params.weight_decay) == (
        0.03,
        0.9,
        0.0004,
    )
    assert (trainer.batch_size, trainer.m, trainer.m_schedule, trainer.max_epochs) == (
        64,
        0.996,
        "constant",
        40,
    )
    view = config.data_transforms.view1
    assert view == config.data_transforms.view2
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert [96 / 224 * sigma for sigma in view.blur_sigma] == pytest.approx([0.1, 2.0])


@pytest.mark.parametrize("none", ["None", "null", "~", "none", ""])
def test_every_spelling_of_none(tmp_path: Path, none: str) -> None:
    path = write(tmp_path, CLASSIC.replace("'resnet-18_40-epochs'", none))
    assert load_config(path, [], preset=None).network.fine_tune_from is None


@pytest.mark.parametrize("shape", ["(32,32,3)", "(32, 32, 3,)", "[32, 32, 3]", '"(32,32,3)"'])
def test_spellings_of_the_shape(tmp_path: Path, shape: str) -> None:
    path = write(tmp_path, f"data_transforms:\n  input_shape: {shape}\n")
    assert load_config(path, [], preset=None).data_transforms.input_shape == (32, 32, 3)


def test_a_shape_may_leave_the_channels_open() -> None:
    assert load_config(None, ["data_transforms.input_shape=(32,32,None)"], preset="default").channels is None


# ---- Layers and values


def test_preset_then_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "preset: demo\ntrainer:\n  batch_size: 8\n  seed: 1\n")
    config = load_config(path, ["trainer.seed=2", "trainer.seed=3"], preset=None)
    assert (config.preset, config.trainer.batch_size, config.trainer.seed) == ("demo", 8, 3)
    assert config.optimizer == load_config(None, [], preset="demo").optimizer
    assert load_config(path, [], preset="default").preset == "default"
    assert load_config(path, ["preset=classic"], preset="default").preset == "classic"
    assert load_config(None, [], preset=None).preset == "default"


def test_spellings_of_overrides() -> None:
    config = load_config(
        None,
        [
            "trainer.max-epochs=2",
            "data_transforms.view1.blur=.5",
            "--optimizer.params.lr=3e-4",
            "data={split: a}",
        ],
        preset="demo",
    )
    assert config.trainer.max_epochs == 2 and config.data.split == "a"
    assert (config.data_transforms.view1.blur, config.data_transforms.view2.blur) == (0.5, 0.0)
    assert config.optimizer.params.lr == 0.0003


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1E-4", 1e-4), (".5e3", 500.0), ("1", 1.0)])
def test_numbers(text: str, value: float) -> None:
    assert load_config(None, [f"optimizer.params.lr={text}"], preset="classic").optimizer.params.lr == value


@pytest.mark.parametrize(
    "text", ["yes", "true", "nan", ".nan", "inf", "-.inf", "'0.5'", "1:30", "2024-01-01", "0x1"]
)
def test_what_is_no_number(text: str) -> None:
    (line,) = problems(None, f"trainer.m={text}")
    shown = text if text in ("true", ".nan", "-.inf", "'0.5'") else repr(text)
    assert line == f"override {f'trainer.m={text}'!r}: got {shown}, allowed: a number from 0 to 1 or none"


def test_a_folder_may_be_a_number(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data:\n  source: 2024\n"), ["data.root=1e5"], preset=None)
    assert (config.data.source, config.data.root) == ("2024", "1e5")


def test_a_section_with_every_key_commented_out(tmp_path: Path) -> None:
    path = write(tmp_path, "trainer:\n  # batch_size: 3\noptimizer:\n")
    assert load_config(path, [], preset=None) == load_config(None, [], preset="classic")


def test_anchors(tmp_path: Path) -> None:
    text = "data_transforms:\n  view1: &view {blur: 0.25}\n  view2: *view\n"
    assert load_config(write(tmp_path, text), [], preset=None).data_transforms.view2.blur == 0.25


# ---- Domains and open settings

DOMAINS = ("photo", "grey", "microscopy", "satellite", "medical", "industrial")


def test_preset_then_domain_then_file_then_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "preset: default\ndata_transforms:\n  domain: medical\n  view: {noise: 0.5, blur: 0.25}\n"
        "  view1: {blur: 0.75}\n",
    )
    transforms = load_config(path, ["data_transforms.view.gamma=0.1"], preset=None).data_transforms
    view1, view2 = transforms.view1, transforms.view2
    assert (transforms.domain, view1.rotation, view2.rotation) == ("medical", 10.0, 10.0)
    # Beside the short form, the view that is named counts, wherever it stands.
    assert (view1.noise, view1.blur, view2.noise, view2.blur) == (0.5, 0.75, 0.5, 0.25)
    assert (view1.gamma, view2.gamma) == (0.1, 0.1)
    later = ["data_transforms.view1.blur=0.1", "data_transforms.view.blur=0.2"]
    assert load_config(path, later, preset=None).data_transforms.view1.blur == 0.2


def test_views_of_the_domain_photo_are_those_of_the_default_preset() -> None:
    default = load_config(None, [], preset="default").data_transforms
    photo = load_config(None, ["data_transforms.domain=photo"], preset="classic").data_transforms
    assert (photo.view1, photo.view2) == (default.view1, default.view2)
    assert photo.input_shape == (96, 96, 3)


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_are_complete_and_say_why(domain: str) -> None:
    config = load_config(None, [f"data_transforms.domain={domain}"], preset="default")
    assert config.data_transforms.domain == domain
    folder = Path(sys.modules["byol.config"].__file__ or "").parent / "presets" / "views"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(DOMAINS)
    text = (folder / f"{domain}.yaml").read_text()
    assert text.startswith("# ") and set(yaml.safe_load(text)) <= {"view", "view1", "view2"}


def test_refused_domains_and_short_forms(tmp_path: Path) -> None:
    assert problems(None, "data_transforms.domain=micrscopy") == [
        "override 'data_transforms.domain=micrscopy': got 'micrscopy', allowed: one of auto, photo, grey, "
        "microscopy, satellite, medical, industrial or none; did you mean 'microscopy'?"
    ]
    text = "data_transforms:\n  view:\n    blur: 2\n    blurr: 1\n  view1: {blur: 3}\n"
    assert problems(write(tmp_path, text)) == [
        "my.yaml:4: data_transforms.view.blurr: unknown key; did you mean 'data_transforms.view.blur'?",
        "my.yaml:5: data_transforms.view1.blur: got 3, allowed: a number from 0 to 1",
        "my.yaml:3: data_transforms.view.blur: got 2, allowed: a number from 0 to 1",
    ]


def test_only_the_default_preset_is_open() -> None:
    for preset in ("classic", "paper", "demo"):
        partial_config = load_partial(None, [], preset=preset)
        assert (
            partial_config.unset == partial_config.resolvable == ()
            and partial_config.resolve({"trainer.batch_size": 3}) == partial_config
        )
    partial_config = load_partial(None, ["trainer.batch_size=8"], preset="default")
    assert partial_config.unset == (
        "network.name",
        "data_transforms.domain",
        "data_transforms.input_shape",
        "trainer.accumulation_steps",
        "trainer.max_epochs",
    )


def test_what_is_given_stays_when_the_rest_is_settled(tmp_path: Path) -> None:
    given = ["data_transforms.view1.turn=0.1", "trainer.batch_size=8", "network.stem=standard"]
    partial_config = load_partial(None, given, preset="default")
    chosen = {
        "network": {"name": "resnet18", "stem": "small"},
        "data_transforms.domain": "microscopy",
        "data_transforms.view": {"turn": 0.5, "noise": 0.25},
        "data_transforms.input_shape": (32, 32, None),
        "trainer": {"batch_size": 64, "accumulation_steps": 2, "max_epochs": 3},
    }
    resolved = partial_config.resolve(chosen)
    assert resolved.unset == ()
    config = resolved.config
    assert (config.network.name, config.network.stem, config.batch_size) == ("resnet18", "standard", 8)
    view1, view2 = config.data_transforms.view1, config.data_transforms.view2
    assert (view1.turn, view2.turn, view1.noise, view1.crop_area) == (0.1, 0.5, 0.25, (0.7, 0.7))
    assert (config.view_px, config.accumulation_steps, config.trainer.max_epochs) == (32, 2, 3)
    # It reads back equal, and gives another partial_config the same values.
    assert load_config(write(tmp_path, dump_config(config)), [], preset=None) == config
    assert partial_config.resolve(partial_config.values_of(config)).config == config
    with pytest.raises(ConfigError, match=r"^override 'trainer\.batch_size=8': .*_steps 8 does not divide"):
        partial_config.resolve(chosen | {"trainer": {"accumulation_steps": 8, "max_epochs": 3}})


def test_an_open_configuration_is_written_without_the_numbers_of_its_domain(tmp_path: Path) -> None:
    """Else they would all be given when it is read, and a domain that is chosen could change nothing."""
    partial_config = load_partial(None, ["data_transforms.view.blur=0.9"], preset="default")
    text = partial_config.dump()
    written = yaml.safe_load(text)["data_transforms"]
    assert written["domain"] == "auto" and written["input_shape"] is None
    assert written["view1"] == written["view2"] == {"blur": 0.9}
    read = load_partial(write(tmp_path, text), [], preset=None)
    assert (read.config, read.unset) == (partial_config.config, partial_config.unset)
    assert read.resolve({"data_transforms.domain": "medical"}).config.data_transforms.view1.rotation == 10.0


# ---- Refusals


def test_all_problems_come_in_one_error_with_their_lines(tmp_path: Path) -> None:
    text = (
        "network: resnet18\n"
        "trainer:\n"
        "  batch_sise: 3\n"
        "  max_epochs: forty\n"
        "  batch_size: -4\n"
        "  seed: 1\n"
        "  seed: 2\n"
        "data:\n"
        "  download: yes\n"
        "  channels: gray\n"
        "data_transforms:\n"
        "  input_shape: [96, 32, 3]\n"
        "  view1:\n"
        "    hue: 0.7\n"
        "    crop_area: [1, 0.5]\n"
    )
    assert sorted(problems(write(tmp_path, text), "trainer.m=2", "batch_size=3")) == sorted(
        [
            "my.yaml:1: network: got 'resnet18', expected a section with name, stem, "
            "projection_head, fine_tune_from, warm_heads, encoder_lr",
            "my.yaml:3: trainer.batch_sise: unknown key; did you mean 'trainer.batch_size'?",
            "my.yaml:4: trainer.max_epochs: got 'forty', allowed: an integer from 1 to 1000000 or none",
            "my.yaml:5: trainer.batch_size: got -4, allowed: an integer from 2 to 1048576 or none",
            "my.yaml:7: trainer.seed: set twice, first in line 6; keep one of them",
            "my.yaml:9: data.download: got 'yes', allowed: true or false; did you mean 'true'?",
            "my.yaml:10: data.channels: got 'gray', allowed: one of grey, rgb or a list, each an "
            "integer from 0 or "
            "none; did you mean 'grey'?",
            "my.yaml:12: data_transforms.input_shape: got [96, 32, 3], allowed: a square from 8 "
            "to 4096 px, such as "
            "[96, 96, 3]",
            "my.yaml:14: data_transforms.view1.hue: got 0.7, allowed: a number from 0 to 0.5",
            "my.yaml:15: data_transforms.view1.crop_area: got [1, 0.5], allowed: [low, high] with "
            "low not above high",
            "override 'trainer.m=2': got 2, allowed: a number from 0 to 1 or none",
            "override 'batch_size=3': unknown key; did you mean 'trainer.batch_size'?",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "my.yaml: holds a list; expected sections such as 'trainer:'"),
        ("resnet18", "my.yaml: holds a single value; expected sections such as 'trainer:'"),
        ("# nothing\n", "my.yaml: is empty; expected sections such as 'trainer:'"),
        ("", "my.yaml: is empty; expected sections such as 'trainer:'"),
        ("trainer:\n\tseed: 3\n", "my.yaml:2: not valid YAML: a tab; indent with spaces"),
        ("trainer: [", "my.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
        (
            "data: {}\n---\ndata: {}\n",
            "my.yaml:2: not valid YAML: more than one document; remove the '---' between them",
        ),
        ("data:\n  root: \x01\n", "my.yaml:2: not valid YAML: an unprintable character"),
        ("[" * 3000, "my.yaml: not valid YAML: nested too deeply"),
        (
            b"data:\n  root: \xff\n",
            "my.yaml: is not UTF-8 text (byte 14); save it as UTF-8",
        ),
        (
            "preset: papper\n",
            "my.yaml:1: preset: got 'papper', allowed: one of classic, paper, default, demo; did "
            "you mean 'paper'?",
        ),
        (
            "quark: 3\n",
            "my.yaml:1: quark: unknown key; sections are preset, network, data_transforms, "
            "trainer, optimizer, "
            "data, evaluation",
        ),
        (
            "optimizer:\n  quark: 3\n",
            "my.yaml:2: optimizer.quark: unknown key; allowed in 'optimizer': name, params, schedule, "
            "warmup_epochs, scale_lr, derive",
        ),
    ],
)
def test_refused_files(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert problems(write(tmp_path, text)) == [expected]


def test_python_objects_are_never_made(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    path = write(tmp_path, f"trainer:\n  seed: !!python/object/apply:os.mkdir [{marker}]\n")
    assert problems(path)[0].startswith("my.yaml:2: the tag !!python/object/apply:os.mkdir is not allowed")
    assert not marker.exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert problems(missing)[0].endswith(
        "my.yaml: no such file; `byol config --preset classic > my.yaml` writes one"
    )
    assert problems(tmp_path) == ["my.yaml: is a folder; a configuration file (.yaml) is expected"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("foo", "override 'foo': section.key=value is expected, such as trainer.max_epochs=2"),
        ("trainer.seed=[", "override 'trainer.seed=[': '[' is not valid YAML; put it in quotes"),
        (
            "trainer.max_epoch=2",
            "override 'trainer.max_epoch=2': unknown key; did you mean 'trainer.max_epochs'?",
        ),
        ("optimizer.lr=1", "override 'optimizer.lr=1': unknown key; did you mean 'optimizer.params.lr'?"),
        (
            "trainer={sede: 2}",
            "override 'trainer={sede: 2}': trainer.sede: unknown key; did you mean 'trainer.seed'?",
        ),
        (
            "trainer.seed=true",
            "override 'trainer.seed=true': got true, allowed: an integer from 0 to 4294967295",
        ),
        (
            "trainer.seed=4.0",
            "override 'trainer.seed=4.0': got 4.0, allowed: an integer from 0 to 4294967295",
        ),
        (
            "trainer.device=cuba",
            "override 'trainer.device=cuba': got 'cuba', allowed: one of auto, cpu, cuda, mps, xpu; did "
            "you mean 'cuda'?",
        ),
        (
            "trainer.accumulation_steps=3",
            "override 'trainer.batch_size=64': trainer.accumulation_steps 3 does not divide "
            "trainer.batch_size 64 into equal parts of 2 or more",
        ),
        (
            "optimizer.warmup_epochs=101",
            "override 'optimizer.warmup_epochs=101': optimizer.warmup_epochs 101 is longer than the run, "
            "trainer.max_epochs 100",
        ),
        (
            "trainer={max_epochs: 3, max_hours: 2}",
            "override 'trainer={max_epochs: 3, max_hours: 2}': trainer.max_hours: trainer.max_hours 2 and "
            "trainer.max_epochs 3 both set the length of the run; leave one out",
        ),
        (
            "trainer={max_epochs: null, max_hours: 0}",
            "override 'trainer={max_epochs: null, max_hours: 0}': trainer.max_hours: got 0, allowed: a "
            "number above 0 to 100000 or none",
        ),
        (
            "data.stored_px=95",
            "override 'data.stored_px=95': data.stored_px 95 is below the 96 px of a view "
            "(data_transforms.input_shape)",
        ),
        (
            "optimizer.name=adamw",
            "override 'optimizer.name=adamw': optimizer.derive 'default' has no learning rate for "
            "'adamw'; set "
            "optimizer.params.lr, or optimizer.name: sgd",
        ),
        (
            "optimizer.scale_lr=true",
            "override 'optimizer.scale_lr=true': optimizer.scale_lr needs optimizer.params.lr, because "
            "optimizer.derive 'default' already uses the batch size",
        ),
        (
            "data.channels=[0, 0]",
            "override 'data.channels=[0, 0]': got [0, 0], allowed: channel numbers, each once",
        ),
    ],
)
def test_refused_overrides(override: str, expected: str) -> None:
    assert problems(None, *SETTLED, override) == [expected]


def test_the_later_layer_says_how_long(tmp_path: Path) -> None:
    def length(path: Path | None, *overrides: str) -> tuple[int | None, float | None]:
        trainer = load_config(path, overrides, preset=None).trainer
        return trainer.max_epochs, trainer.max_hours

    epochs, hours = (f"trainer:\n  {line}\n" for line in ("max_epochs: 3", "max_hours: 2"))
    assert length(None, "trainer.max_hours=0.05") == (None, 0.05)
    assert length(write(tmp_path, hours)) == (None, 2)
    assert length(write(tmp_path, hours), "trainer.max_epochs=5") == (5, None)
    assert length(write(tmp_path, epochs), "trainer.max_hours=1.5") == (None, 1.5)
    assert length(write(tmp_path, epochs), "trainer.max_hours=null") == (3, None)
    config = load_config(None, ["trainer.max_hours=2"], preset="demo")
    assert load_config(write(tmp_path, dump_config(config)), [], preset=None) == config
    assert diff_configs(load_config(None, [], preset="demo"), config) == [
        "trainer.max_epochs: 24 -> null",
        "trainer.max_hours: null -> 2.0",
    ]


def test_nulls_need_a_rule() -> None:
    lines = problems(None, "optimizer.derive=null", preset="default")
    keys = ("optimizer.params.lr", "optimizer.params.weight_decay", "optimizer.warmup_epochs", "trainer.m")
    for line, key in zip(lines, keys, strict=True):
        assert f"{key} is null and so is optimizer.derive; give a number" in line


def test_channels_hue_and_preset_conflicts() -> None:
    (line,) = problems(None, "data.channels=grey", preset="classic")
    assert line.endswith(
        "data.channels gives 1 channel(s), but data_transforms.input_shape has 3; set 1 or null"
    )
    lines = problems(None, "data_transforms.s=3", preset="classic")
    assert [line.partition("data_transforms.s is 0.6")[1] != "" for line in lines] == [True, True]
    (line,) = problems(None, preset="clasic")
    assert line.startswith("preset 'clasic': got 'clasic'") and line.endswith("did you mean 'classic'?")


# ---- Whole configurations


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_read_back_equal(tmp_path: Path, preset: str) -> None:
    config = load_config(None, [], preset=preset)
    assert config.preset == preset
    dumped = write(tmp_path, dump_config(config))
    assert load_config(dumped, [], preset=None) == config
    # As PyYAML alone reads it, tuples excepted: other tools get the same values.
    assert leaves(yaml.safe_load(dumped.read_text())).keys() == leaves(config.model_dump()).keys()


def test_a_configuration_of_a_run_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """Otherwise the preset's values would take the place of the lost ones."""
    text = dump_config(load_config(None, ["evaluation.test=other"], preset="demo"))
    lines = text.splitlines(keepends=True)
    cuts = ["".join(lines[:count]) for count in range(2, len(lines))]
    assert cuts[-1] + "# end\n" == text
    for cut in [*cuts, text[:-2], text[:-3], text[:200]]:
        with pytest.raises(ConfigError, match=r"my\.yaml: is cut short, its last line '# end' is missing"):
            load_config(write(tmp_path, cut), [], preset=None)
    assert load_config(write(tmp_path, text[:-1]), [], preset=None).evaluation.test == "other"


@pytest.mark.parametrize(
    "name", ["None", "1e5", "0x10", "yes", "a: b # c", "émile", "x\ny", " ", "null", "'", "~"]
)
def test_any_text_reads_back_equal(tmp_path: Path, name: str) -> None:
    config = load_config(None, [f"data.source={json.dumps(name)}"], preset="demo")
    assert config.data.source == name
    assert load_config(write(tmp_path, dump_config(config)), [], preset=None) == config


def test_every_setting_has_a_description_and_stands_in_every_preset() -> None:
    schema = json.loads(json_schema())
    keys = []

    def visit(section: dict[str, Any], prefix: str) -> None:
        assert "required" not in section
        for name, setting in section["properties"].items():
            inner = schema["$defs"].get(setting.get("$ref", "").rpartition("/")[2])
            assert {**(inner or {}), **setting}["description"].endswith("."), f"{prefix}{name}"
            if inner and name != "view":  # which is short for both
                visit(inner, f"{prefix}{name}.")
            elif not inner:
                keys.append(f"{prefix}{name}")

    visit(schema, "")
    folder = Path(sys.modules["byol.config"].__file__ or "").parent / "presets"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(PRESETS)
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# ") and sorted(leaves(yaml.safe_load(text))) == sorted(keys)


def test_a_configuration_is_frozen() -> None:
    config = load_config(None, [], preset="demo")
    with pytest.raises(ValidationError, match="frozen"):
        config.trainer.seed = 3  # type: ignore[misc]


def test_differences_are_those_that_change_numbers() -> None:
    old = load_config(None, [], preset="demo")
    unimportant = [
        "evaluation.seed=3",
        "data.packs=p",
        "data.memory=map",
        "trainer.num_workers=1",
        "trainer.log_interval=7",
    ]
    assert diff_configs(old, load_config(None, unimportant, preset="demo")) == []
    new = load_config(None, ["trainer.batch_size=32", "data_transforms.input_shape=[48,48,3]"], preset="demo")
    expected = [
        "data_transforms.input_shape: [32, 32, 3] -> [48, 48, 3]",
        "trainer.batch_size: 64 -> 32",
    ]
    assert diff_configs(old, new) == expected
    assert diff_configs(json.loads(old.model_dump_json()), new) == expected


def test_differences_from_a_configuration_with_other_keys() -> None:
    config = load_config(None, [], preset="demo")
    old = config.model_dump()
    old["trainer"]["forgotten"] = 1
    del old["trainer"]["seed"]
    assert diff_configs(old, config) == [
        "trainer.seed: not set -> 0",
        "trainer.forgotten: 1 -> not set",
    ]


def test_reading_loads_no_torch() -> None:
    read = "import sys; from byol.config import load_config; load_config(None, [], preset='demo')"
    subprocess.run([sys.executable, "-c", f"{read}; assert 'torch' not in sys.modules"], check=True)


def test_the_properties_follow_the_shape() -> None:
    config: Config = load_config(None, ["data_transforms.input_shape=[40,40,2]"], preset="demo")
    assert (config.view_px, config.channels) == (40, 2)

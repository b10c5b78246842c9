"""Choose open settings from the images and the machine, each with a reason.

The constants of the rules are at the top. A rule sets only settings that the preset leaves open and the user
has not set. After all other choices, `measure` times a step and measures its memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from byol.base.errors import ConfigError, DataError
from byol.base.text_table import describe_duration, whole_percent
from byol.config import Config, PartialConfig
from byol.data.sources.survey import Survey
from byol.device.devices import GPUS, DeviceName
from byol.training.step_benchmark import StepBenchmark

# Views. If `Survey.upright` is below this, a classifier on brightness cannot recognise upright images.
UPRIGHT_FROM = 0.6
TURNED = {"vertical_flip": 0.5, "rotation": 180.0}
# Additions to BYOL, and the domains where they were measured to help; docs/decisions.md has the measurements.
VICREG_WEIGHT, VICREG_DOMAINS = 1.0, ("photo", "grey", "microscopy")
WEAK_DOMAINS = ("photo", "grey")
MANY_CHANNELS = 10  # satellites have this many bands; microscopes have fewer channels
LARGER = 1.1  # largest view side, as a multiple of the median image side
VIEW_SIDES = (32, 40, 48, 64, 96, 128, 160, 224)  # px

# Network and length by device. All GPUs use the same values: none were measured on Intel and Apple.
# A batch holds at most half of the images, so an epoch has at least two steps.
NETWORKS = {"cpu": "resnet10t"} | dict.fromkeys(GPUS, "resnet18")
STRIDED_UP_TO = 48  # largest view (px) with the strided stem for resnet10t on a CPU
MOST_VIEW_PX = {"cpu": 64} | dict.fromkeys(GPUS, 128)
BATCHES = {"cpu": 64} | dict.fromkeys(GPUS, 256)
FEWEST_IMAGES = 16
PASSES = {"cpu": 400_000} | dict.fromkeys(GPUS, 4_000_000)  # least number of images over all epochs
PASSES_PER_IMAGE = {"cpu": 40} | dict.fromkeys(GPUS, 200)
DEFAULT_HOURS = {"cpu": 0.85} | dict.fromkeys(GPUS, 8.0)  # longest training, at the measured speed

_STEM_WORDS = {"strided": "first layers (stem) for small images", "standard": "the usual first layers (stem)"}
_TURN_WORDS = {"vertical_flip": "flips", "rotation": "rotation", "turn": "quarter turns"}
_DOMAIN_WORDS = {
    "photo": "photos",
    "grey": "grey photos",
    "microscopy": "microscopy",
    "satellite": "satellite images",
    "medical": "medical images",
}
_DEVICE_NAMES = {"cpu": "a CPU", "cuda": "a GPU", "xpu": "an Intel GPU", "mps": "an Apple GPU"}


@dataclass(frozen=True)
class Choice:
    """A chosen value, or the values of a section, with its dotted key, a description and a reason."""

    key: str
    value: object
    words: str
    reason: str

    def __str__(self) -> str:
        return f"{self.words} ({self.reason})"


@dataclass(frozen=True)
class Machine:
    """The machine that trains."""

    device: DeviceName
    precision: Literal["bf16", "fp32"]  # bf16 if the hardware computes it faster
    world_size: int


# Times a step of a complete configuration. The flag: use as many micro-batches as memory requires.
Measure = Callable[[Config, bool], StepBenchmark]


@dataclass(frozen=True)
class Chosen:
    """A complete configuration, the choices in it, and the benchmark of its step if one was run."""

    config: Config
    choices: tuple[Choice, ...]
    benchmark: StepBenchmark | None


def choose(
    partial_config: PartialConfig,
    survey: Survey,
    *,
    machine: Machine,
    is_dicom: bool,
    measure: Measure | None,
) -> Chosen:
    """Choose every open setting. Without `measure`, use one micro-batch and ignore the training time.

    Raises:
        ConfigError: a chosen setting conflicts with the user's, or a step does not fit into memory.
        DataError: there are fewer than FEWEST_IMAGES images.
    """
    choices = [
        *_choose_views(partial_config, survey, is_dicom=is_dicom),
        *_choose_channels(partial_config, survey),
        *_choose_side(partial_config, survey, machine=machine),
    ]
    view_px = partial_config.resolve(_values_of(choices)).config.view_px
    choices += _choose_network(partial_config, view_px=view_px, machine=machine)
    num_images = count_usable(survey)
    choices += _choose_batch(partial_config, num_images=num_images, machine=machine)
    choices += _choose_additions(partial_config, choices, device=machine.device)
    resolved, benchmark = partial_config.resolve(_values_of(choices)), None
    if resolved.unset and measure is not None:
        trial = resolved.resolve({"trainer": {"accumulation_steps": 1, "max_epochs": 1}}).config
        benchmark = measure(trial, "trainer.accumulation_steps" in resolved.unset)
    choices += _choose_num_microbatches(resolved, benchmark)
    choices += choose_threads(benchmark)
    choices += _choose_length(resolved, benchmark, num_images=num_images, device=machine.device)
    return Chosen(partial_config.resolve(_values_of(choices)).config, tuple(choices), benchmark)


def count_usable(survey: Survey) -> int:
    """Estimate the number of readable images in a source from the images that the survey looked at."""
    return round(survey.num_images * (1.0 - survey.num_bad / survey.num_looked_at))


def _values_of(choices: list[Choice]) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choices}


# ---- Views and channels


def _choose_views(partial_config: PartialConfig, survey: Survey, *, is_dicom: bool) -> list[Choice]:
    if "data_transforms.domain" not in partial_config.unset:
        return []
    domain, reason = _find_domain(survey, is_dicom=is_dicom)
    words = f"random changes (views) as for {_DOMAIN_WORDS[domain]}"
    chosen = Choice("data_transforms.domain", domain, words, reason)
    return [chosen, *_choose_turns(partial_config, domain, survey)]


def _find_domain(survey: Survey, *, is_dicom: bool) -> tuple[str, str]:
    channels = "1 channel" if survey.channels == 1 else f"{survey.channels} channels"
    kind = f"the images have {survey.bits} bits and {channels}"
    if is_dicom:
        return "medical", "the images are DICOM files"
    if survey.channels >= MANY_CHANNELS:
        return "satellite", f"{kind}, more than microscopes have"
    if survey.bits > 8 or survey.channels not in (1, 3):
        return "microscopy", kind
    if survey.is_grey:
        return "grey", kind.replace(" channels", " equal channels")
    return "photo", kind


def _choose_turns(partial_config: PartialConfig, domain: str, survey: Survey) -> list[Choice]:
    """Use the turns of the domain or, if orientation does not matter, all turns. Keep what the user set."""
    free = [name for name in TURNED if not partial_config.is_explicit(f"data_transforms.view1.{name}")]
    if not free:
        return []
    can = survey.upright >= UPRIGHT_FROM
    orientation = f"orientation {'matters' if can else 'hardly matters'}"
    told = f"a test recognised turned images in {whole_percent(survey.upright)} of cases"
    reason = f"{orientation}: {told}{'' if can else '; chance is 50 %'}"
    view = partial_config.resolve({"data_transforms.domain": domain}).config.data_transforms.view1
    values = {name: getattr(view, name) if can else TURNED[name] for name in free}
    done = [words for name, words in _TURN_WORDS.items() if values.get(name, getattr(view, name))]
    reason += f"; byol still turns {domain} images" if can and done else ""
    return [Choice("data_transforms.view", values, " and ".join(done) or "no up-down flips", reason)]


def _choose_channels(partial_config: PartialConfig, survey: Survey) -> list[Choice]:
    if "data.channels" not in partial_config.resolvable or not survey.is_grey or survey.channels != 3:
        return []
    if partial_config.config.channels == 3:  # set by the user
        return []
    return [Choice("data.channels", "grey", "1 channel", "the 3 channels of every image are equal")]


def _choose_side(partial_config: PartialConfig, survey: Survey, *, machine: Machine) -> list[Choice]:
    if "data_transforms.input_shape" not in partial_config.unset:
        return []
    median, most = survey.sides[1], MOST_VIEW_PX[machine.device]
    stored = partial_config.config.data.stored_px
    limit = min(int(LARGER * median), most, most if stored is None else stored)
    side = max((side for side in VIEW_SIDES if side <= limit), default=VIEW_SIDES[0])
    reason = f"longest side of a typical image {median} px"
    if median > most and limit == most:
        reason += f"; at most {most} on {_DEVICE_NAMES[machine.device]}"
    elif stored is not None and limit == stored:
        reason += f"; stored at {stored} px"
    elif side > limit:
        reason += f"; at least {side}"
    return [Choice("data_transforms.input_shape", (side, side, None), f"view size {side} px", reason)]


# ---- Network, batch and length


def _choose_network(partial_config: PartialConfig, *, view_px: int, machine: Machine) -> list[Choice]:
    choices, device = [], _DEVICE_NAMES[machine.device]
    if "network.name" in partial_config.unset:
        name = NETWORKS[machine.device]
        choices.append(Choice("network.name", name, f"network {name}", f"on {device}"))
        if "network.stem" in partial_config.resolvable and machine.device == "cpu":
            stem = "strided" if view_px <= STRIDED_UP_TO else "standard"
            choices.append(
                Choice(
                    "network.stem",
                    stem,
                    f"{_STEM_WORDS[stem]}, network.stem={stem}",
                    f"for views of {view_px} px on {device}",
                )
            )
    if "trainer.precision" in partial_config.resolvable:
        reason, words = "bf16 is not faster here", "the network computes in fp32, 32-bit numbers"
        if machine.precision == "bf16":
            reason, words = "faster on this hardware", "the network computes in bf16, fast 16-bit numbers"
        choices.append(Choice("trainer.precision", machine.precision, words, reason))
    return choices


def _choose_batch(partial_config: PartialConfig, *, num_images: int, machine: Machine) -> list[Choice]:
    """Choose a power of two, rounded down to a multiple of ranks x micro-batches."""
    if "trainer.batch_size" not in partial_config.unset:
        return []
    if num_images < FEWEST_IMAGES:
        raise DataError(
            f"{partial_config.config.data.source}: {num_images} images are too few to learn from; give at "
            f"least {FEWEST_IMAGES}"
        )
    wanted = BATCHES[machine.device]
    share = machine.world_size * (partial_config.config.trainer.accumulation_steps or 1)
    most = min(wanted, 2 ** int(math.log2(num_images // 2)))
    batch = max(most // share, 2) * share
    if batch > num_images // 2:
        raise ConfigError(
            f"trainer.batch_size: {num_images} images are too few for {share} ranks x micro-batches; use "
            "fewer ranks or a smaller trainer.accumulation_steps"
        )
    half = f"at most half of the {num_images} images"
    reason = half if most < wanted else f"on {_DEVICE_NAMES[machine.device]}"
    reason += f"; a multiple of {share}" if batch != most else ""
    return [Choice("trainer.batch_size", batch, f"batch size {batch}", reason)]


def _choose_num_microbatches(partial_config: PartialConfig, benchmark: StepBenchmark | None) -> list[Choice]:
    if "trainer.accumulation_steps" not in partial_config.unset:
        return []
    parts = 1 if benchmark is None else benchmark.accumulation_steps
    reason = "memory was not measured"
    if benchmark is not None:
        reason = f"{benchmark.peak_bytes / 1e9:.1f} of {benchmark.limit_bytes / 1e9:.1f} GB"
    words = f"{parts} micro-batches per step, each fits" if parts > 1 else "the whole batch fits"
    words += " into memory"
    return [Choice("trainer.accumulation_steps", parts, words, reason)]


def _choose_additions(
    partial_config: PartialConfig, choices: list[Choice], *, device: DeviceName
) -> list[Choice]:
    """Choose additions to BYOL where they were measured to help: random weights, a CPU, some domains."""
    config = partial_config.resolve(_values_of(choices)).config
    domain, is_random = config.data_transforms.domain, config.network.fine_tune_from is None
    if not is_random or device != "cpu" or domain is None:
        return []
    where = f"for {_DOMAIN_WORDS[domain]} on a CPU"
    vicreg = f"an extra training goal, from VICReg, trainer.vicreg_weight={VICREG_WEIGHT:g}"
    weak = "one more view for the target network, data_transforms.target_view=weak"
    apart = f"keeps different images apart in the first half of the run; {where}"
    both = f"of a large crop in its own colours, which both other views predict; {where}"
    found = (
        (Choice("trainer.vicreg_weight", VICREG_WEIGHT, vicreg, apart), VICREG_DOMAINS),
        (Choice("data_transforms.target_view", "weak", weak, both), WEAK_DOMAINS),
    )
    resolvable = partial_config.resolvable
    return [choice for choice, domains in found if domain in domains and choice.key in resolvable]


def choose_threads(benchmark: StepBenchmark | None) -> list[Choice]:
    """Return the number of threads if fewer than all were faster in the benchmark, otherwise nothing."""
    if benchmark is None or benchmark.all_threads_s is None:
        return []
    num = benchmark.num_threads
    return [
        Choice(
            "trainer.num_threads",
            num,
            f"{num} thread{'s' if num != 1 else ''} of the CPU",
            f"{benchmark.step_s:.3g} s per step, but {benchmark.all_threads_s:.3g} s with all threads, "
            "as is common while other programs use the CPU; trainer.num_threads sets the number",
        )
    ]


def _choose_length(
    partial_config: PartialConfig, benchmark: StepBenchmark | None, *, num_images: int, device: DeviceName
) -> list[Choice]:
    if "trainer.max_epochs" not in partial_config.unset:
        return []
    batch = partial_config.config.batch_size
    passes = max(PASSES[device], PASSES_PER_IMAGE[device] * num_images)
    steps_per_epoch = max(1, num_images // batch)
    epochs = max(1, round(passes / (steps_per_epoch * batch)))
    reason = f"training then sees {passes:,} images, repeats included"
    if benchmark is not None:
        hours = DEFAULT_HOURS[device]
        affordable = int(hours * 3600 / benchmark.step_s / steps_per_epoch)
        if affordable < epochs:
            epochs = max(1, affordable)
            reason = (
                f"as many as fit into {describe_duration(3600.0 * hours)} at the speed measured now, "
                f"{benchmark.step_s:.3g} s per step"
            )
    words = f"{epochs:,} epoch{'s' if epochs > 1 else ''}, {epochs * steps_per_epoch:,} steps"
    return [Choice("trainer.max_epochs", epochs, words, reason)]

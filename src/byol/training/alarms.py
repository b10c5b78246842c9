"""Find what is wrong with a run, before and during training, and name its likeliest cause and one setting to
change.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from byol.base.errors import CollapsedError, DataError, DivergedError
from byol.config import Config, DataTransforms, View
from byol.method.schedule import Plan, reference_lr
from byol.metrics.health import Health, Measures, describe_loss, has_lost_rank
from byol.training.fixed_images import FixedImages
from byol.training.initial_weights import InitialWeights

PATIENCE = 2  # checks in a row that find the same before it is believed
BLANK_STD = 0.05  # of an image or view, in units of the data set's std: below, it shows nothing
_WARN_BLANK, _MAX_BLANK = 0.2, 0.5  # share of blank views
_SETTLED = 200  # steps, before which an encoder may be worse than at step 0
_FAR = 30.0  # times the reference learning rate, from where bad health is its fault
_NOTABLE = 10.0  # times it, said at the start
_SUSPECT = 3.0  # times it, from where it is the likeliest cause of a collapse
# Settings that can leave a view blank, and a value of each that cannot; the first that explains is named.
_HARMLESS: dict[str, object] = {
    "crop_area": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "blur": 0.0,
}


# ---- Before the first step


def check_images(fixed: FixedImages, *, source: str) -> None:
    """Refuse images that hold nothing to learn.

    Raises:
        DataError: each of the fixed images is of one value, or all of them are equal.
    """
    whole = fixed.whole()
    number = f"{len(whole)} images"
    problem = None
    if bool(_is_blank(whole).all()):
        problem = f"each of the {number} byol looked at has one value only"
    elif len(whole) > 1 and bool((whole - whole[0]).abs().amax() < BLANK_STD):
        problem = f"the {number} byol looked at are all equal"
    if problem is not None:
        raise DataError(
            f"data.source: {source}: {problem}, so there is nothing to learn; look at the files (byol "
            "check), and give other images"
        )


def check_views(fixed: FixedImages) -> list[str]:
    """A line for each of the two kinds of views of which too many are blank, with the setting to change.

    Views are a function of images and settings, so that once is enough for the whole run. Images that are
    blank as a whole do not count.

    Raises:
        DataError: more than half of them are.
    """
    lines = []
    for number, share in enumerate(_blank_shares(fixed)):
        if share > _WARN_BLANK:
            name = f"view{number + 1}"
            setting = _find_culprit(fixed, number, share=share)
            better = f"data_transforms.{name}.{setting}={_suggest(fixed.transforms, name, setting=setting)}"
            value = getattr(getattr(fixed.transforms, name), setting)
            shown = f"[{value[0]:g},{value[1]:g}]" if isinstance(value, tuple) else f"{value:g}"
            text = f"data_transforms.{name}: {share:.0%} of its views are blank because of {setting}={shown}"
            if share > _MAX_BLANK:
                raise DataError(f"{text}; an encoder cannot learn from them: set {better}")
            lines.append(f"warning: {text}; set {better}")
    return lines


def describe_rate(config: Config, plan: Plan) -> list[str]:
    """A line if the learning rate is far from what suits the optimizer and the batch."""
    ratio, reference = _compare_rate(config, plan)
    if ratio < _NOTABLE:
        return []
    return [
        f"warning: the learning rate is {ratio:.0f} times the value that suits this optimizer and batch "
        f"size; set optimizer.params.lr={reference:.2g}"
    ]


# ---- While it trains


class Watch:
    """What the checks of a run have found so far, and what follows from it."""

    def __init__(self, config: Config, plan: Plan, *, start: InitialWeights) -> None:
        self._config, self._plan, self._measures = config, plan, start.measures
        self._not_before = max(plan.warmup_steps, 2 * start.warm_steps, _SETTLED)
        self._ill, self._worse = 0, 0
        # Random weights tell noise apart too, and lose rank when they learn not to: not said of those.
        self._told = start.measures is None or start.heads == "random"

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in plain values."""
        return {"ill": self._ill, "worse": self._worse, "told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """As it was when `state` was asked for."""
        self._ill, self._worse, self._told = state["ill"], state["worse"], state["told"]

    def note(self, health: Health, measures: Measures, *, done: int) -> str | None:
        """To be called after each check; a line the first time that the encoder is worse than at step 0."""
        self._ill = self._ill + 1 if self._is_ill(health, measures) else 0
        if self._told or self._measures is None or done < self._not_before:
            return None
        loss = describe_loss(measures, self._measures)
        self._worse = self._worse + 1 if loss is not None else 0
        if self._worse < PATIENCE:
            return None
        self._told = True
        return (
            f"warning: at step {done} the encoder is worse than at step 0 ({loss}); if that does not "
            "change, start again with a lower network.encoder_lr"
        )

    def _is_ill(self, health: Health, measures: Measures) -> bool:
        """Collapsed; or, at a rate that is far off, no longer well.

        At 1,000 times the rate, projections of few dimensions still look spread out, but representations had
        0.3 of the rank at step 0 after 50 steps; with the right rate 0.8 to 0.9 of it.
        """
        if _compare_rate(self._config, self._plan)[0] < _FAR:
            return health.verdict == "collapsed"
        before = self._measures
        return health.verdict != "healthy" or (before is not None and has_lost_rank(measures, before))

    @property
    def is_over(self) -> bool:
        """Whether the run is beyond hope."""
        return self._ill >= PATIENCE


def check_finite(
    loss: float,
    optimizer: torch.optim.Optimizer,
    *,
    config: Config,
    plan: Plan,
    step: int,
    lr: float,
    gradients_too: bool,
) -> None:
    """Refuse a step whose loss, or with `gradients_too` gradient, is not finite. Then the host waits here.

    Raises:
        DivergedError: one of them is not.
    """
    finite = math.isfinite(loss)
    if finite and gradients_too:
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        finite = math.isfinite(float(nn.utils.get_total_norm(gradients)))
    if not finite:
        raise explain_divergence(config, plan, step=step, lr=lr)


def explain_collapse(
    config: Config, plan: Plan, *, health: Health, done: int, saved: str, views: list[str]
) -> CollapsedError:
    """The error for a run whose projections have (nearly) become equal, or lie on a few directions.

    `views`: what `check_views` found. It is the cause unless the learning rate is far off.
    """
    ratio, _ = _compare_rate(config, plan)
    cause = views[0].removeprefix("warning: ") if views and ratio < _SUSPECT else _blame_rate(config, plan)
    what = "have nearly the same projection" if health.verdict == "collapsed" else "have similar projections"
    return CollapsedError(
        f"collapsed at step {done}: all images {what} (feature std {health.feature_std:.4f}, effective rank "
        f"{health.rank:.1f}); {saved}; {cause}"
    )


def explain_divergence(config: Config, plan: Plan, *, step: int, lr: float) -> DivergedError:
    """The error for a step whose loss or gradient is not finite."""
    return DivergedError(
        f"loss or gradient is not finite at step {step} (lr {lr:.3g}); byol did not apply the step and kept "
        f"the last checkpoint; {_blame_rate(config, plan)}"
    )


def _blame_rate(config: Config, plan: Plan) -> str:
    ratio, reference = _compare_rate(config, plan)
    if ratio >= _SUSPECT:
        cause = f"the learning rate is {ratio:.0f} times the value that suits this optimizer and batch size"
        return f"{cause}; start again in another folder with optimizer.params.lr={reference:.2g}"
    lower = ratio * reference / 3
    return (
        f"start again in another folder with a lower learning rate, such as optimizer.params.lr={lower:.2g}"
    )


def _compare_rate(config: Config, plan: Plan) -> tuple[float, float]:
    """The setting optimizer.params.lr as a multiple of the reference, and the reference."""
    setting = plan.base_lr / (plan.batch_size / 256 if config.optimizer.scale_lr else 1.0)
    reference = reference_lr(config, plan)
    return setting / reference, reference


# ---- Blank views


def _is_blank(images: Float[Tensor, "image channel height width"]) -> Bool[Tensor, " image"]:
    return images.flatten(2).std(dim=2, correction=0).amax(dim=1) < BLANK_STD


def _blank_shares(fixed: FixedImages, *, views: tuple[View, View] | None = None) -> tuple[float, float]:
    """Of the images that show something, the share whose first, and whose second view shows nothing."""
    shown = ~_is_blank(fixed.whole())
    assert bool(shown.any()), "check_images comes first"
    transforms = fixed.transforms
    if views is not None:
        transforms = transforms.model_copy(update={"view1": views[0], "view2": views[1]})
    view1, view2 = fixed.views(transforms=transforms)
    return float(_is_blank(view1)[shown].float().mean()), float(_is_blank(view2)[shown].float().mean())


def _find_culprit(fixed: FixedImages, number: int, *, share: float) -> str:
    """The setting without which the fewest views would be blank."""
    before = (fixed.transforms.view1, fixed.transforms.view2)
    shares: dict[str, float] = {}
    for setting, value in _HARMLESS.items():
        changed = tuple(view.model_copy(update={setting: value}) for view in before)
        shares[setting] = _blank_shares(fixed, views=(changed[0], changed[1]))[number]
        if shares[setting] < 0.25 * share:
            return setting
    return min(shares, key=lambda setting: shares[setting])


def _suggest(transforms: DataTransforms, name: str, *, setting: str) -> str:
    """A value with which fewer views are blank: that of the default preset, or one milder than the given."""
    value = getattr(getattr(transforms, name), setting)
    if setting == "crop_area":
        low = 0.2 if value[0] < 0.2 else min(2.0 * value[0], 0.9)
        return f"[{low:.2g},1.0]"
    usual = 0.4 / max(1.0, transforms.s)  # s multiplies brightness and contrast
    return f"{usual if value > usual else value / 2:.2g}"

"""Detect problems of a run before and during training; name the likeliest cause and a setting to change."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from byol.base.errors import CollapsedError, DataError, DivergedError
from byol.base.text_table import whole_percent
from byol.config import Config, DataTransforms, View
from byol.method.schedule import Plan, reference_lr
from byol.metrics.health import Health, Measures, describe_loss, has_lost_rank
from byol.training.fixed_images import FixedImages
from byol.training.initial_weights import InitialWeights

PATIENCE = 2  # a problem counts after this number of successive checks
BLANK_STD = 0.05  # an image or view with a smaller std, in units of the data set's std, is blank
_WARN_BLANK, _MAX_BLANK = 0.2, 0.5  # fraction of blank views for a warning, for an error
_SETTLED = 200  # before this step, an encoder may be worse than at step 0
# Learning rates, as multiples of the reference learning rate:
_FAR = 30.0  # from here on, it is to blame for any bad verdict
_NOTABLE = 10.0  # from here on, the run starts with a warning
_SUSPECT = 3.0  # from here on, it is the likeliest cause of a collapse
# Settings that can make a view blank, each with a value that cannot. byol names the first that is to blame.
_HARMLESS: dict[str, object] = {
    "crop_area": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "blur": 0.0,
}


# ---- Before the first step


def check_images(fixed: FixedImages, *, source: str) -> None:
    """Refuse images from which nothing can be learned.

    Raises:
        DataError: each of the fixed images has only one value, or all of them are equal.
    """
    whole = fixed.whole()
    number = f"{len(whole)} images"
    problem = None
    if bool(_is_blank(whole).all()):
        problem = f"each of the {number} byol looked at has only one value"
    elif len(whole) > 1 and bool((whole - whole[0]).abs().amax() < BLANK_STD):
        problem = f"the {number} byol looked at are all equal"
    if problem is not None:
        raise DataError(
            f"data.source: {source}: {problem}, so there is nothing to learn; look at the files (byol "
            "check), and give other images"
        )


def check_views(fixed: FixedImages) -> list[str]:
    """Return a warning, with a setting to change, for each of view1 and view2 if too many are blank.

    One check is enough for a run, because views depend only on images and settings. Images that are blank as
    a whole do not count.

    Raises:
        DataError: more than half of the views are blank.
    """
    lines = []
    for number, share in enumerate(_blank_shares(fixed)):
        if share > _WARN_BLANK:
            name = f"view{number + 1}"
            setting = _find_culprit(fixed, number, share=share)
            better = f"data_transforms.{name}.{setting}={_suggest(fixed.transforms, name, setting=setting)}"
            value = getattr(getattr(fixed.transforms, name), setting)
            shown = f"[{value[0]:g},{value[1]:g}]" if isinstance(value, tuple) else f"{value:g}"
            text = (
                f"data_transforms.{name}: {whole_percent(share)} of its views are blank because of "
                f"{setting}={shown}"
            )
            if share > _MAX_BLANK:
                raise DataError(f"{text}; an encoder cannot learn from them: set {better}")
            lines.append(f"warning: {text}; set {better}")
    return lines


def describe_rate(config: Config, plan: Plan) -> list[str]:
    """Return a warning if the learning rate is far above the one that suits the optimizer and the batch."""
    ratio, reference = _compare_rate(config, plan)
    if ratio < _NOTABLE:
        return []
    return [
        f"warning: the learning rate is {ratio:.0f} times the value that suits this optimizer and batch "
        f"size; set optimizer.params.lr={reference:.2g}"
    ]


# ---- During training


class Watch:
    """Counts bad health checks; decides when to warn and when to stop the run."""

    def __init__(self, config: Config, plan: Plan, *, start: InitialWeights) -> None:
        self._config, self._plan, self._measures = config, plan, start.measures
        self._not_before = max(plan.warmup_steps, 2 * start.warm_steps, _SETTLED)
        self._ill, self._worse = 0, 0
        # No comparison with random weights: they separate even noise, and training reduces their rank.
        self._told = start.measures is None or start.heads == "random"

    def state(self) -> dict[str, Any]:
        """Return the counts for a checkpoint, as plain values."""
        return {"ill": self._ill, "worse": self._worse, "told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the counts from `state()`."""
        self._ill, self._worse, self._told = state["ill"], state["worse"], state["told"]

    def note(self, health: Health, measures: Measures, *, done: int) -> str | None:
        """Count a check. Return a warning, once, if the encoder is worse than at step 0."""
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
        """Return whether the run is collapsed or, if its learning rate is far too high, not healthy.

        At 1,000 times the right rate, projections with few dimensions still looked spread out, but after 50
        steps the effective rank of the features was 0.3 of that at step 0 (0.8 to 0.9 with the right rate).
        """
        if _compare_rate(self._config, self._plan)[0] < _FAR:
            return health.verdict == "collapsed"
        before = self._measures
        return health.verdict != "healthy" or (before is not None and has_lost_rank(measures, before))

    @property
    def is_over(self) -> bool:
        """Whether the run must stop."""
        return self._ill >= PATIENCE


def explain_collapse(
    config: Config, plan: Plan, *, health: Health, done: int, saved: str, views: list[str]
) -> CollapsedError:
    """Return the error for a run whose projections are nearly equal or lie in few directions.

    `views`: the warnings of `check_views`. They are named as the cause unless the learning rate is too high.
    """
    ratio, _ = _compare_rate(config, plan)
    cause = views[0].removeprefix("warning: ") if views and ratio < _SUSPECT else _blame_rate(config, plan)
    what = "have nearly the same projection" if health.verdict == "collapsed" else "have similar projections"
    return CollapsedError(
        f"collapsed at step {done}: all images {what} (feature std {health.feature_std:.4f}, effective rank "
        f"{health.rank:.1f}); {saved}; {cause}"
    )


def explain_divergence(
    config: Config, plan: Plan, *, steps: tuple[int, int], lr: float, again: bool
) -> DivergedError:
    """Return the error for successive steps, from the first to the last, that are not finite.

    `again`: the run had already gone back to a checkpoint; otherwise there is none to go back to.
    """
    before = (
        "the run has already gone back once with half the learning rate; byol kept the last checkpoint"
        if again
        else "there is no checkpoint to go back to"
    )
    return DivergedError(
        f"loss or gradient is not finite at steps {steps[0]} to {steps[1]} (lr {lr:.3g}); byol did not apply "
        f"these steps; {before}; {_blame_rate(config, plan)}"
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
    """Return optimizer.params.lr as a multiple of the reference learning rate, and the reference."""
    setting = plan.base_lr / (plan.batch_size / 256 if config.optimizer.scale_lr else 1.0)
    reference = reference_lr(config, plan)
    return setting / reference, reference


# ---- Blank views


def _is_blank(images: Float[Tensor, "image channel height width"]) -> Bool[Tensor, " image"]:
    return images.flatten(2).std(dim=2, correction=0).amax(dim=1) < BLANK_STD


def _blank_shares(fixed: FixedImages, *, views: tuple[View, View] | None = None) -> tuple[float, float]:
    """Return the fraction of non-blank images whose first view is blank, and whose second view is blank."""
    shown = ~_is_blank(fixed.whole())
    assert bool(shown.any()), "check_images comes first"
    transforms = fixed.transforms
    if views is not None:
        transforms = transforms.model_copy(update={"view1": views[0], "view2": views[1]})
    view1, view2 = fixed.views(transforms=transforms)
    return float(_is_blank(view1)[shown].float().mean()), float(_is_blank(view2)[shown].float().mean())


def _find_culprit(fixed: FixedImages, number: int, *, share: float) -> str:
    """Return the setting whose harmless value leaves the fewest blank views."""
    before = (fixed.transforms.view1, fixed.transforms.view2)
    shares: dict[str, float] = {}
    for setting, value in _HARMLESS.items():
        changed = tuple(view.model_copy(update={setting: value}) for view in before)
        shares[setting] = _blank_shares(fixed, views=(changed[0], changed[1]))[number]
        if shares[setting] < 0.25 * share:
            return setting
    return min(shares, key=lambda setting: shares[setting])


def _suggest(transforms: DataTransforms, name: str, *, setting: str) -> str:
    """Return a value that leaves fewer blank views: that of the default preset, or a milder one."""
    value = getattr(getattr(transforms, name), setting)
    if setting == "crop_area":
        low = 0.2 if value[0] < 0.2 else min(2.0 * value[0], 0.9)
        return f"[{low:.2g},1.0]"
    usual = 0.4 / max(1.0, transforms.s)  # s multiplies brightness and contrast
    return f"{usual if value > usual else value / 2:.2g}"

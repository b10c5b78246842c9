"""Settings that are right alone and wrong together."""

from collections.abc import Iterator, Mapping
from typing import Any

from byol.config.values import MAX_HUE, read_tuple


def find_conflicts(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Settings that are right alone and wrong together: (their keys, what is wrong).

    `values` holds only settings that are right alone, so that some may be missing.
    """

    def has(*keys: str) -> bool:
        return all(values.get(key) is not None for key in keys)

    batch, parts = "trainer.batch_size", "trainer.accumulation_steps"
    if has(batch, parts) and (values[batch] % values[parts] or values[batch] < 2 * values[parts]):
        yield (
            (batch, parts),
            f"{batch} {values[batch]} cannot be computed in {parts} {values[parts]} equal parts of 2 or more",
        )
    warmup, epochs = "optimizer.warmup_epochs", "trainer.max_epochs"
    if has(warmup, epochs) and values[warmup] > values[epochs]:
        yield (
            (warmup, epochs),
            f"{warmup} {values[warmup]} is longer than the run, {epochs} {values[epochs]}",
        )
    yield from _find_derivation_conflicts(values)
    yield from _find_image_conflicts(values)


def _find_derivation_conflicts(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    rule, name, lr = "optimizer.derive", "optimizer.name", "optimizer.params.lr"
    derive = values.get(rule)
    if rule in values and derive is None:
        for key in (lr, "optimizer.params.weight_decay", "optimizer.warmup_epochs", "trainer.m"):
            if key in values and values[key] is None:
                yield (key, rule), f"{key} is null and so is {rule}; give a number, or {rule}: default"
    if lr in values and values[lr] is None:
        wanted = {"paper": "lars", "default": "sgd"}.get(str(derive))
        given = values.get(name, wanted)
        if wanted is not None and given != wanted:
            yield (
                (name, rule, lr),
                f"{rule} {derive!r} has no learning rate for {given!r}; set {lr}, or {name}: {wanted}",
            )
        elif derive == "default" and values.get("optimizer.scale_lr"):
            yield (
                ("optimizer.scale_lr", rule, lr),
                f"optimizer.scale_lr needs {lr}, because {rule} 'default' already uses the batch size",
            )


def _find_image_conflicts(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    shape, stored, select = "data_transforms.input_shape", "data.stored_px", "data.channels"
    view_px, _, channels = read_tuple(values.get(shape)) or (0, 0, None)
    if values.get(stored) is not None and values[stored] < view_px:
        yield (stored, shape), f"{stored} {values[stored]} is below the {view_px} px of a view ({shape})"
    selected = {"grey": 1, "rgb": 3}.get(str(values.get(select)))
    if isinstance(values.get(select), list):
        selected = len(values[select])
    if channels is not None and selected not in (None, channels):
        yield (
            (select, shape),
            f"{select} gives {selected} channel(s), but {shape} has {channels}; set {selected} or null",
        )
    s = values.get("data_transforms.s")
    for view in ("view1", "view2"):
        hue = f"data_transforms.{view}.hue"
        if s is not None and hue in values and s * values[hue] > MAX_HUE:
            yield (
                (hue, "data_transforms.s"),
                f"{hue} times data_transforms.s is {s * values[hue]:g}, more than half a turn ({MAX_HUE})",
            )

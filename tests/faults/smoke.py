"""A few of each kind of fault, in about a minute of one core: what every change must pass."""

import errno
from collections.abc import Callable, Iterator
from functools import partial

from faults import damage, disk, folders, kills, machine
from faults.results import Job


def _list_kills() -> Iterator[Job]:
    yield partial(kills.in_every_operation, part=0, parts=1, stride=97)
    yield partial(kills.random_moments, "SIGKILL", num=3, seed=0)
    yield partial(kills.random_moments, "SIGUSR1", num=1, seed=1)
    yield partial(kills.stopped_in_operations, "SIGTERM", num=2, seed=3)


def _list_disk() -> Iterator[Job]:
    yield partial(disk.write_errors, errno.ENOSPC, lasting=True, part=0, parts=1, stride=150)
    yield partial(disk.write_errors, errno.EIO, lasting=False, part=0, parts=1, stride=250)
    yield partial(disk.read_errors, errno.EIO, lasting=False, stride=60)
    yield partial(disk.read_errors, errno.EIO, lasting=True, stride=200, images=disk.TAR)


def _list_damage() -> Iterator[Job]:
    yield partial(damage.damage_stopped_run, "a/checkpoints/*.pt", num=1, seed=0, title="A checkpoint")
    yield partial(damage.damage_tar, num=1, seed=0)


def _list_folders() -> Iterator[Job]:
    yield partial(folders.second_process, num=1)
    yield folders.other_images


def _list_machine() -> Iterator[Job]:
    yield partial(machine.dead_reader, num=1)
    yield partial(machine.not_finite, "gradient", num=1)
    yield partial(machine.three_not_finite, num=1)


GROUPS: dict[str, Callable[[], Iterator[Job]]] = {
    "kills": _list_kills,
    "disk": _list_disk,
    "damage": _list_damage,
    "folders": _list_folders,
    "machine": _list_machine,
}

"""The types of settings: probabilities, ranges, shapes, lists without duplicates."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MIN_VIEW_PX, MAX_VIEW_PX = 8, 4096
MAX_HUE = 0.5  # turns; with +- half a turn, every hue is possible


def read_tuple(value: Any) -> Any:
    """Read a tuple from a list or from the text "(96,96,3)", because YAML has no tuples."""
    if isinstance(value, str) and value.startswith("(") and value.endswith(")"):
        parts = value[1:-1].removesuffix(",").split(",")
        return tuple(_read_number(part.strip()) for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _read_number(text: str) -> int | float | str | None:
    if text in ("None", "none", "null", "~"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("[low, high] with low not above high")
    return value


def _check_shape(value: tuple[int, int, int | None]) -> tuple[int, int, int | None]:
    height, width, _ = value
    if height != width or not MIN_VIEW_PX <= height <= MAX_VIEW_PX:
        raise ValueError(f"a square from {MIN_VIEW_PX} to {MAX_VIEW_PX} px, such as [96, 96, 3]")
    return value


def _check_distinct(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise ValueError("channel numbers, each once")
    return value


def check_once(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise ValueError("loggers, each once")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=2)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Area = Annotated[float, Field(gt=0, le=1)]
_Aspect = Annotated[float, Field(ge=0.1, le=10)]
_Sigma = Annotated[float, Field(gt=0, le=50)]
_AsTuple, _InOrder = BeforeValidator(read_tuple), AfterValidator(_check_order)
AreaRange = Annotated[tuple[_Area, _Area], _AsTuple, _InOrder]
AspectRange = Annotated[tuple[_Aspect, _Aspect], _AsTuple, _InOrder]
SigmaRange = Annotated[tuple[_Sigma, _Sigma], _AsTuple, _InOrder]
Shape = Annotated[tuple[int, int, Annotated[int, Field(ge=1)] | None], _AsTuple, AfterValidator(_check_shape)]
ChannelList = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_check_distinct)
]

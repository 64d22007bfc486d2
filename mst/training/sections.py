"""How a section of a config is checked: by pydantic, told in one line by the setting's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mst.errors import InputError


class TrainingError(InputError):
    """A run that cannot begin or go on; the message says what to do."""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("the first number should be below the second")
    return limits


Whole = Annotated[int, BeforeValidator(_no_switch)]
Count = Annotated[Whole, Field(ge=1)]
Some = Annotated[Whole, Field(ge=0)]  # a count; 0 for none
Number = Annotated[float, BeforeValidator(_no_switch)]
Share = Annotated[Number, Field(ge=0, le=1)]
Rate = Annotated[Number, Field(gt=0, le=1e3)]
Weight = Annotated[Number, Field(ge=0)]
Limits = Annotated[tuple[Number, Number], AfterValidator(_rising)]


class Settings(BaseModel):
    """A section of a config: nothing but what it names, and no number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=Settings)


def said(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without what is null in it, which counts as not said."""
    return {
        key: said(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value is not None
    }


def read_section(kind: type[Section], section: Any, name: str) -> Section:
    """A section of a config.

    Args:
        name: of the section; "" for a whole config.

    Raises:
        TrainingError: a setting that there is none of, one that is missing, or one of a wrong kind.
    """
    if not isinstance(section, Mapping):
        raise TrainingError(f"{name} is {section!r}, not a list of settings")
    try:
        return kind.model_validate(section := said(section))
    except ValidationError as error:
        raise TrainingError(_told(error, kind, section, name)) from error


def _told(error: ValidationError, kind: type[BaseModel], section: Any, name: str) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    path = _path(first["loc"], section)
    where = ".".join(part for part in (name, *path[:-1]) if part) or "the config"
    if first["type"] == "extra_forbidden":
        return f"{where} has no setting {path[-1]}; known: {', '.join(sorted(_fields(kind, path[:-1])))}"
    if first["type"] == "missing" and first["loc"] and isinstance(first["loc"][-1], str):
        return f"{'.'.join(part for part in (name, *path) if part) or 'the config'} lacks {first['loc'][-1]}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    called = ".".join(part for part in (name, *path) if part)
    value: Any = section
    for part in path:
        value = value[part]
    if isinstance(value, Mapping):
        return f"{called}: {message}" if called else message
    return f"{called} is {value!r}: {message}"


def _path(place: tuple[int | str, ...], section: Any) -> list[str]:
    """The names in a config that lead to where pydantic found something, as far as they are such names."""
    path = []
    for part in place:
        if not isinstance(section, Mapping) or part not in section:
            break
        path.append(str(part))
        section = section[part]
    return path


def _fields(kind: Any, path: list[str]) -> list[str]:
    """The names that a section within a section may hold."""
    for part in path:
        annotation = kind.model_fields[part].annotation
        kind = next((inner for inner in get_args(annotation) if hasattr(inner, "model_fields")), annotation)
    return list(kind.model_fields)

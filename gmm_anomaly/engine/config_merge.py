"""Config files and ``KEY VALUE`` pairs merged into a config; what does not fit is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY


class ConfigError(ValueError):
    """A config file or a ``KEY VALUE`` pair that no machine could use: the command was given wrongly."""


def merge_file(cfg: CfgNode, config_file: str) -> None:
    """Merge a file and its ``_BASE_`` chain as data: tags that call Python are refused, not run.

    Raises:
        ConfigError: no YAML, tags, a key that does not exist, or a value of another type; names the file.
        FileNotFoundError: a ``_BASE_`` that is not there.
    """
    try:
        # Detectron2 by itself would call yaml.unsafe_load.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"--config-file: {config_file}: configs, and their _BASE_ files, hold plain values only, no tags "
            f"that make or call Python objects; {_one_line(error)}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--config-file: {config_file} cannot be read as YAML; {_one_line(error)}"
        ) from error
    except RecursionError:
        raise ConfigError(f"--config-file: the _BASE_ chain of {config_file} never ends") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--config-file: the _BASE_ chain of {config_file} names {error.filename}, which is not there"
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        found = next(_problems_of_chain(cfg, Path(config_file)), None)
        raise ConfigError(f"--config-file: {found or f'{config_file}: {_one_line(error)}'}") from error


def merge_pairs(cfg: CfgNode, pairs: Sequence[Any]) -> None:
    """Merge keys and values that stand one after the other, as on a command line.

    Raises:
        ConfigError: a key without a value, a key that does not exist, or a value of another type.
    """
    if len(pairs) % 2:
        raise ConfigError(f"expected KEY VALUE pairs, found the key {str(pairs[-1])!r} without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        problem = _problem_of_key(cfg, key)
        if problem:
            raise ConfigError(problem)
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise ConfigError(_wrong_type(key, _get(cfg, key), value)) from error


def _problems_of_chain(cfg: CfgNode, file: Path) -> Iterator[str]:
    """What does not fit ``cfg``, for each file of the chain that holds such a thing."""
    given = yaml.safe_load(file.read_text())
    if not isinstance(given, Mapping):
        yield f"{file}: expected keys with values, found {type(given).__name__}"
        return
    yield from (f"{file}: {problem}" for problem in _problems(cfg, given))
    bases = given.get(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        yield f"{file}: {BASE_KEY}: expected a file or a list of files, found {bases!r}"
        return
    for base in bases:
        path = file.parent / Path(base).expanduser()
        if path.is_file():
            yield from _problems_of_chain(cfg, path)


def _problems(cfg: CfgNode, given: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key == BASE_KEY:
            continue
        known = _get(cfg, key)
        if isinstance(known, CfgNode) and isinstance(value, Mapping):
            yield from _problems(cfg, value, f"{key}.")
            continue
        problem = _problem_of_key(cfg, key)
        if problem:
            yield problem
            continue
        try:
            CfgNode({"value": known}).merge_from_list(["value", value])
        except ValueError:
            yield _wrong_type(key, known, value)


def _problem_of_key(cfg: CfgNode, key: str) -> str:
    """Why no value can be given to a key; "" if one can."""
    known = _get(cfg, key)
    if known is _NOTHING:
        nearest = get_close_matches(key, _keys(cfg), n=1)
        return f"there is no config key {key}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if isinstance(known, CfgNode):
        return f"{key} is a section; give its keys, such as {key}.{next(iter(known), '')}"
    return ""


def _wrong_type(key: str, known: Any, value: Any) -> str:
    return f"{key}: expected {type(known).__name__} such as {known!r}, found {value!r}"


# None is a value, of SOLVER.WEIGHT_DECAY_BIAS.
_NOTHING = object()


def _get(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key, or ``_NOTHING``."""
    value: Any = cfg
    for part in key.split("."):
        if not isinstance(value, CfgNode) or part not in value:
            return _NOTHING
        value = value[part]
    return value


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

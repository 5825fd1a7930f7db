"""Configs as files and overrides: reading, validation with one line for each mistake, writing, description."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vjepa.config import reading
from vjepa.config.aliases import ALIASES
from vjepa.config.finetuning import FinetuneConfig
from vjepa.config.masks import MASK_KINDS
from vjepa.config.model import Backbone
from vjepa.config.section import ConfigError, Section
from vjepa.config.settings import Config
from vjepa.config.world import WorldConfig

SettingsT = TypeVar("SettingsT", Config, FinetuneConfig, WorldConfig)

_MAKE_AN_INDEX = (
    "; `python -m data_prep.index FOLDER --out x.parquet` makes an index of a folder of videos or images "
    "(ImageNet's train/); give data.train=x.parquet"
)


def config_path(name: str) -> Path:
    """Find the file called `name`, or the shipped config of that name (`demo`, `configs/demo.yaml`).

    Raises ConfigError where there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    package = Path(__file__).parents[1]
    shipped = [folder / f"{Path(name).stem}.yaml" for folder in (package / "configs", package.parent / "configs")]
    for path in shipped:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in shipped for path in folder.parent.glob("*.yaml")})
    raise ConfigError(f"{name}: no such config file, and none of this name is shipped (shipped: {', '.join(known)})")


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a config of pre-training and overrides `section.key=value`; see `load_training`."""
    settings = load_training(name, overrides)
    if not isinstance(settings, Config):
        raise ConfigError(f"{name}: has a section world, so that it is for vjepa.train and vjepa.plan alone")
    return settings


def load_training(name: str, overrides: Sequence[str] = ()) -> Config | WorldConfig:
    """Read and validate a config file and overrides `section.key=value`; a section `world` makes it a `WorldConfig`.

    Both may use the short names of `ALIASES`. Raises ConfigError with one line.
    """
    path = config_path(name)
    tree = read_tree(path, overrides)
    if isinstance(tree["run"], dict) and tree["run"].get("dir") is None:
        tree["run"]["dir"] = f"runs/{path.stem}"
    return validate_world(tree, str(path)) if "world" in tree else validate(tree, str(path))


def load_run(path: Path) -> Config | FinetuneConfig | WorldConfig:
    """Read the config.yaml of a run of any method. Raises ConfigError with one line."""
    tree = read_tree(path)
    return validate_finetuning(tree, str(path)) if "finetune" in tree else load_training(str(path))


def read_tree(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file, or none, and overrides, short names spelled out; nothing is validated but its form."""
    tree = _parse_file(path) if path else {}
    _spell_out(tree, str(path))
    for override in overrides:
        _override(tree, override)
    tree.setdefault("run", {})
    return tree


def _parse_file(path: Path) -> dict[str, Any]:
    try:
        tree = reading.parse(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is a {type(tree).__name__}")
    return tree


def validate(tree: Mapping[str, Any], origin: str) -> Config:
    """Make a `Config` of plain data. Raises ConfigError with one line, which opens with `origin`."""
    return _validated(Config, _filled(tree), origin)


def validate_finetuning(tree: Mapping[str, Any], origin: str) -> FinetuneConfig:
    """Make the config of a fine-tuning run of plain data. Raises ConfigError with one line."""
    return _validated(FinetuneConfig, tree, origin)


def validate_world(tree: Mapping[str, Any], origin: str) -> WorldConfig:
    """Make the config of a world model's run of plain data. Raises ConfigError with one line."""
    return _validated(WorldConfig, tree, origin)


def _validated(kind: type[SettingsT], tree: Mapping[str, Any], origin: str) -> SettingsT:
    try:
        return kind.model_validate_json(json.dumps(tree))
    except TypeError as error:  # a YAML date or set, which no setting takes
        raise ConfigError(f"{origin}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, kind)}") from None


def changed(settings: WorldConfig, overrides: Sequence[str]) -> WorldConfig:
    """Change resolved settings by overrides `section.key=value`. Raises ConfigError with one line."""
    tree = settings.model_dump(mode="json")
    for override in overrides:
        _override(tree, override)
    return validate_world(tree, " ".join(overrides))


def explain(error: ValidationError, section: type[Section] = Config) -> str:
    """Tell every mistake in a `section` as `path: what is wrong; remedy`, in one line."""
    return "; ".join(_explain(one, section) for one in error.errors())


def _filled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Add a section `data`, so that without one it is data.train that is missing.

    For a network of timm, which reads images, its default is single frames.
    """
    model, data = tree.get("model", {}), tree.get("data", {})
    of_timm = isinstance(model, dict) and model.get("backbone", "vit") not in get_args(Backbone)
    return {**tree, "data": {"num_frames": 1, **data} if of_timm and isinstance(data, dict) else data}


def dump(config: Section) -> str:
    """Write the resolved config as YAML; reading it back gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe_aliases(section: type[Section] = Config) -> Iterator[str]:
    """List the short names that a kind of run has, one line each: what it stands for."""
    for name, path in ALIASES.items():
        if path.split(".")[0] in section.model_fields and not (section is not Config and path.startswith("model.")):
            yield f"  {name} = {path}"


def describe(section: type[Section] = Config) -> Iterator[str]:
    """List the settings of a kind of run, one line each: path, default, meaning."""
    yield from _describe(section, "")
    if section is not Config:
        return
    for kind, section in MASK_KINDS.items():
        yield from _describe(section, f"masks.N[{kind}].")


def _describe(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _describe(inner, f"{prefix}{name}.")
            continue
        default = "required"
        if not field.is_required():
            default = json.dumps(field.get_default(), default=lambda value: value.model_dump())
        yield f"  {prefix}{name} = {default}  {field.description or ''}"


def _spell_out(tree: dict[str, Any], origin: str) -> None:
    """Replace the short names at the top level of a config by the settings they stand for."""
    for name in [name for name in tree if name in ALIASES]:
        path, value = ALIASES[name], tree.pop(name)
        if _is_given(tree, path):
            raise ConfigError(f"{origin}: {name} is short for {path}, which is given too; keep one of them")
        _set(tree, path, value, f"{origin}: {name}")


def _is_given(tree: Any, path: str) -> bool:
    """Tell whether `tree` has something at this path of keys and places in lists."""
    key, _, rest = path.partition(".")
    if isinstance(tree, list):
        tree = {str(place): value for place, value in enumerate(tree)}
    return isinstance(tree, dict) and key in tree and (not rest or _is_given(tree[key], rest))


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value`; the value is YAML, and a number in the path is a place in a list."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override!r}: an override is written section.key=value")
    first, dot, rest = path.partition(".")
    path = ALIASES.get(first, first) + dot + rest
    try:
        value = reading.parse(text, reading.split_path(path))
    except ConfigError as error:
        raise ConfigError(f"{override!r}: {error}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: {text!r} is not a YAML value") from None
    _set(tree, path, value, repr(override))


def _set(tree: dict[str, Any], path: str, value: Any, origin: str) -> None:
    """Put `value` at `path`, making the sections on the way; `origin` opens the line of a ConfigError."""
    node: Any = tree
    *parents, last = reading.split_path(path)
    for key in parents:
        if isinstance(node, list):
            node = _place(node, key, origin)
        elif path.startswith("data.") and _is_paths(node.get(key)):
            node[key] = {"index": node[key]}  # the short form of a Source
            node = node[key]
        else:
            if node.get(key) is None:
                node[key] = [{}] if key == "masks" else {}  # the default is one set
            node = node[key]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{origin}: {key} is a value, it has no settings inside")
    if isinstance(node, list):
        _place(node, last, origin)
        node[int(last)] = value
    else:
        node[last] = value


def _is_paths(value: Any) -> bool:
    """Tell whether a value is the short form of a Source: a path, or several."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) for item in items)


def _place(items: list[Any], key: str, origin: str) -> Any:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{origin}: {key!r} is not a place in a list of {len(items)}")
    return items[int(key)]


def _explain(error: Any, section: type[Section]) -> str:
    """Tell one validation error as `path: what is wrong; remedy`."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path[:2] + path[3:] if path[:1] == ["masks"] else path)  # a mask's kind is no part of its path
    if error["type"] == "extra_forbidden":
        known = [*_keys(path[:-1], section), *(ALIASES if len(path) == 1 and section is Config else ())]
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{where}: required, and not given" + (_MAKE_AN_INDEX if where == "data.train" else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}.{message}" if where else message
    return f"{where}: {message}, got {error['input']!r}" if where else message


def _keys(path: Sequence[str], section: Any) -> list[str]:
    """List the keys that are known at a path inside of `section`, found by walking it through the models."""
    if path[:1] == ["masks"]:  # masks, place, kind
        return list(MASK_KINDS[path[2]].model_fields)
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section))
    return list(section.model_fields)

"""YAML without its traps: no repeated keys, no objects, and `1e-4` is a number, as YAML 1.2 has it."""

import re
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError

__all__ = ["dump_yaml", "kind_of", "read_mapping", "read_yaml"]

_EXPONENT: Final = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
"""A number with an exponent and no dot, which PyYAML (YAML 1.1) takes for text."""

_OCTAL: Final = ("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])
"""A number in YAML 1.2, which the Hub reads, and text in YAML 1.1: written as text only in quotes."""

# What PyYAML's constructors let through for a malformed date, number or tag, or for endless nesting.
_MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def read_yaml(text: str, where: str) -> Any:
    """Return the plain value in a YAML text.

    Args:
        text: One YAML document.
        where: What it is, for error messages.

    Raises:
        ConfigError: If it is not valid YAML, names an object to construct, or repeats a key.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader with its own copy of the tables that are changed below."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise ConfigError(f"{where}: key {', '.join(sorted(repeated))} appears twice; keep one")
        return loader.construct_mapping(node, deep=True)

    def integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        value = loader.construct_yaml_int(node)
        str(value)  # raises for a hexadecimal number too long for Python to write, which no message could show
        return value

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    Loader.add_implicit_resolver(*_EXPONENT)
    try:
        return yaml.load(text, Loader=Loader)
    except ConfigError:
        raise
    except (yaml.YAMLError, *_MALFORMED) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{where} is not valid YAML{line}: {reason}") from error


def read_mapping(path: str | Path, what: str, example: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: The file.
        what: What it is, for error messages: "recipe".
        example: A file of that kind, for hints.

    Raises:
        ConfigError: If there is no such file, it is not text or no YAML, or it holds anything but a mapping.
    """
    file = Path(path)
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise ConfigError(f"{what} {path}: {kind}; give a .yaml file, e.g. {example}")
    try:
        raw = read_yaml(file.read_text(encoding="utf8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{what} {path} holds {kind_of(raw)}, needed a mapping of keys; start from {example}")
    return raw


def kind_of(value: Any) -> str:
    """Return what a YAML value is, in words."""
    names = {list: "a list", str: "text", type(None): "nothing", dict: "a mapping"}
    return names.get(type(value), f"{value!r}")


def dump_yaml(value: Any) -> str:
    """Return YAML that `read_yaml` reads back to an equal value; mappings keep their order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """SafeDumper that quotes the texts that `read_yaml`, or a reader of YAML 1.2, would take for numbers."""

    Dumper.add_implicit_resolver(*_EXPONENT)
    Dumper.add_implicit_resolver(*_OCTAL)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)

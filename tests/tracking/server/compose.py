"""The server of docs/guides/compose.yaml, as a process of this machine instead of a container."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "compose.yaml"
SECRET = "$$(cat /run/secrets/password)"
"""What the container's shell puts the password in place of; the dollar is doubled for the compose file."""

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def document() -> dict[str, Any]:
    """The file."""
    return dict(YAML(typ="safe").load(FILE.read_text(encoding="utf-8")))


def installed(service: str = "mlflow") -> dict[str, str]:
    """What the container installs, with its version."""
    install = _script(service).split("&&")[0]
    return dict(word.split("==") for word in shlex.split(install) if "==" in word)


def server_words(**places: str) -> list[str]:
    """The words of the server's command.

    Args:
        places: Values of options (`backend_store_uri="sqlite:///..."`) in place of those that hold in the container.
    """
    words = shlex.split(_script("mlflow").split("exec ")[1].replace(SECRET, "secret"))
    for option, value in places.items():
        words[words.index("--" + option.replace("_", "-")) + 1] = value
    return words


def server_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server, with the variables of the compose file filled in."""
    return {
        name: _VARIABLE.sub(lambda found: variables.get(found[1], found[2]), value)
        for name, value in document()["services"]["mlflow"]["environment"].items()
    }


def _script(service: str) -> str:
    shell, flag, script = document()["services"][service]["command"]
    assert (shell, flag) == ("sh", "-c")
    return str(script)

"""Write a configuration as a file in the space language that the parser can read back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from imgcls_search.config import TrialConfig
from imgcls_search.space.scalars import resolve
from imgcls_search.terminal import shown

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


def dump(config: TrialConfig, *, comments: Sequence[str] = ()) -> str:
    """Return a configuration as YAML, after comments, each on its own lines."""
    lines = [line for comment in comments for line in comment.splitlines() or [""]]
    header = "".join(f"# {shown(line)}".rstrip() + "\n" for line in lines)
    body = yaml.dump(
        config.to_dict(), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100_000
    )
    return header + str(body)


class _Dumper(yaml.SafeDumper):
    """Writes mappings in blocks, lists on one line, and quotes around all strings except plain words."""

    def ignore_aliases(self, data: Any) -> bool:
        """Disable YAML aliases: write equal values in full each time."""
        return True


def _string(dumper: _Dumper, text: str) -> yaml.Node:
    is_word = _WORD.fullmatch(text) and isinstance(resolve(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_word else '"')


def _list(dumper: _Dumper, items: Sequence[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(list, _list)


def inline(value: Any) -> str:
    """Return a value in space syntax on one line."""
    text: str = yaml.dump(
        value, Dumper=_Flow, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**6
    )
    return text.removesuffix("\n").removesuffix("\n...")


class _Flow(_Dumper):
    """Writes numbers in short form: `1e-5` instead of `1.0e-05`."""


def _number(dumper: _Flow, value: float) -> yaml.Node:
    mantissa, _, exponent = f"{value!r}".partition("e")
    if not exponent:
        return dumper.represent_scalar("tag:yaml.org,2002:float", mantissa)
    # Written as a word, because PyYAML needs a point in floats; the space parser does not.
    return dumper.represent_scalar("tag:yaml.org,2002:str", f"{mantissa}e{int(exponent)}")


_Flow.add_representer(float, _number)

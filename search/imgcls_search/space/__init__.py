"""The space language: parameters, parsing with positions, sampling, and writing a configuration back.

This package knows no model or optimizer by name: the `Catalog` passed to `parse` defines what a file may contain.
"""

from imgcls_search.space.comparison import MISSING, Difference, differences
from imgcls_search.space.parameters import Parameter, Suggests
from imgcls_search.space.parser import parse, parse_values, read_space
from imgcls_search.space.space import Space
from imgcls_search.space.start import start_of
from imgcls_search.space.writer import dump

__all__ = [
    "MISSING",
    "Difference",
    "Parameter",
    "Space",
    "Suggests",
    "differences",
    "dump",
    "parse",
    "parse_values",
    "read_space",
    "start_of",
]

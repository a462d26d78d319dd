"""The space language: parameters, parsing with positions, sampling, and writing a configuration back.

Nothing here knows a model or an optimizer by name: what a file may say is the `Catalog` that `parse` is given.
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

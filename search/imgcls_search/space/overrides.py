"""What the command line changes in a file before it is read: `--set path=value` and `--data folder:photos`."""

from __future__ import annotations

from imgcls_search.signature import REQUIRED, Fields, Leaf, OneOf
from imgcls_search.space.problems import Place, Report, printable
from imgcls_search.space.yaml_nodes import MAX_DEPTH, ListNode, MapNode, Node, ScalarNode, read


def with_data(root: MapNode, data: str, known: Leaf | OneOf | Fields, report: Report) -> MapNode:
    """Return the file with other data: `digits`, `folder:photos` or `torchvision:STL10:sets`.

    What a data set requires comes first, then its root; values are taken literally. A data set of the kind that the
    file has keeps the file's other arguments, as the shares of its splits.
    """
    place = Place(origin=f"--data {printable(data)}")
    name, colon, location = data.partition(":")
    if not name or (colon and not location):
        report.add(place, "data", "takes a name, or a name and a place, as in digits or folder:photos")
        return root
    option = known.options.get(name) if isinstance(known, OneOf) else None
    names = _required(option) if option is not None else []
    names += [] if "root" in names else ["root"]
    values = location.split(":", len(names) - 1) if colon else []
    args = {
        key: ScalarNode(place=place, value=value, text=value, quoted=True)
        for key, value in zip(names, values, strict=False)
    }
    own = _arguments_of(root.values.get("data"), name)
    arguments = MapNode(place=place, values={**own.values, **args}, keys={**own.keys, **dict.fromkeys(args, place)})
    return _replaced(root, "data", _single(name, arguments, place), place)


def _arguments_of(data: Node | None, name: str) -> MapNode:
    """Return what a file says of a data set, nothing where its data is of another kind."""
    found = data.values.get(name) if isinstance(data, MapNode) and len(data.values) == 1 else None
    return found if isinstance(found, MapNode) else MapNode(place=Place())


def _required(option: Fields) -> list[str]:
    return [name for name, leaf in option.fields.items() if isinstance(leaf, Leaf) and leaf.default is REQUIRED]


def with_value(root: MapNode, path: str, text: str, report: Report) -> MapNode:
    """Return the file with one value replaced; mappings on the way to it are made where there are none."""
    place = Place(origin=f"--set {printable(path)}={printable(text)}")
    parts = _parts(path)
    shown = printable(path)
    if not all(parts) or len(parts) > MAX_DEPTH:
        report.add(place, shown, "a path is names joined by single dots, as in model.vit.depth")
        return root
    value = read(text, report, origin=place.origin, path=shown)
    if value is None:
        return root
    try:
        return _put(root, parts, value, place)
    except _BlockedError as blocked:
        report.add(
            place, shown, f"{printable(blocked.path)} is {blocked.kind}, not a mapping; nothing can be set below it"
        )
        return root


def _parts(path: str) -> list[str]:
    """Return the keys of a path; a metric's name is one key, dots and all: `limits.sensitivity@0.95:tumor.at_least`.

    So is the name of a class that has a weight.
    """
    weights, marker, name = path.partition(".class_weights.")
    if marker:
        return [*weights.split("."), "class_weights", name]
    above = next((top for top in ("limits.", "study.objectives.") if path.startswith(top)), "")
    if not above or ":" not in path:
        return path.split(".")
    metric, dot, side = path.removeprefix(above).rpartition(".")
    is_side = dot and side in ("at_least", "at_most")
    return [*above[:-1].split("."), *([metric, side] if is_side else [path.removeprefix(above)])]


class _BlockedError(Exception):
    """Something on the way of a path that is no mapping."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(path)
        self.path = path
        self.kind = kind


def _put(node: Node, parts: list[str], value: Node, place: Place, done: str = "") -> MapNode:
    key, *rest = parts
    mapping = _as_mapping(node, key, place, done)
    if rest:
        child = mapping.values.get(key) or MapNode(place=place)
        value = _put(child, rest, value, place, f"{done}.{key}" if done else key)
    return _replaced(mapping, key, value, place, keep_key=bool(rest))


def _as_mapping(node: Node, key: str, place: Place, path: str) -> MapNode:
    match node:
        case MapNode():
            return node
        case ScalarNode(value=None):
            return MapNode(place=place)
        case ScalarNode(value=str(name)) if name == key:
            # `model: vit` is short for `model: {vit: {}}`.
            return _single(name, MapNode(place=node.place), node.place)
        case ListNode():
            raise _BlockedError(path, "a list")
        case _:
            raise _BlockedError(path, "a single value")


def _replaced(mapping: MapNode, key: str, value: Node, place: Place, *, keep_key: bool = False) -> MapNode:
    key_place = mapping.keys.get(key, place) if keep_key else place
    return MapNode(place=mapping.place, values={**mapping.values, key: value}, keys={**mapping.keys, key: key_place})


def _single(key: str, value: Node, place: Place) -> MapNode:
    return MapNode(place=place, values={key: value}, keys={key: place})

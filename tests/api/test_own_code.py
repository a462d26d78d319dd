"""A person's own functions: where they are looked for, and how a change of them is seen."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import imgcls_search as ic
import pytest
from imgcls_search import own_code
from imgcls_search.api.options import read_space_of
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.models import build_model
from imgcls_search.training import custom_metrics

MODULE = """
from itertools import chain
from typing import Annotated

from imgcls_search.signature import Arg


def tower(*, image_size, channels, classes, floors: Annotated[int, Arg("hidden layers", ge=0, le=3)] = 1):
    from torch import nn

    size = channels * image_size**2
    hidden = [layer for _ in range(floors) for layer in (nn.Linear(size, size), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(size, classes))


def no_network(*, image_size, channels, classes):
    return 3


def two(image_size):
    return image_size


def of_a_set(image_size, channels, classes, kinds: Annotated[set, Arg("kinds")] = frozenset()):
    return None


def of_any(image_size, channels, classes, *more, **others):
    return None


def distance(probabilities, labels):
    return abs(probabilities.argmax(axis=1) - labels).mean()


def images(count=40, splits=None):
    import numpy as np

    pixels = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4)
    found = {"images": pixels, "labels": ["ab"[n % 2] for n in range(count)]}
    return found if splits is None else {**found, "splits": [splits] * count}


A_NUMBER = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with a module, which nobody has named."""
    monkeypatch.delenv(own_code.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_towers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    custom_metrics.load.cache_clear()
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]
    custom_metrics.load.cache_clear()
    os.environ.pop(own_code.VARIABLE, None)


def model(function: str, **arguments: object) -> Component:
    return Component(path="model.custom", name="custom", args={"function": function, **arguments})


def test_a_function_is_found_in_a_folder_that_was_named(code: Path) -> None:
    ic.add_code(code)
    network = build_model(model("own_towers:tower", floors=2), image_size=4, channels=1, classes=3)
    assert sum(weights.numel() for weights in network.parameters()) == 2 * (16 * 16 + 16) + 16 * 3 + 3
    with pytest.raises(ic.BuildError, match=r"model.custom.floors: 4 is not allowed; allowed: int >= 0 and <= 3"):
        build_model(model("own_towers:tower", floors=4), image_size=4, channels=1, classes=3)
    with pytest.raises(ic.BuildError, match=r"gave a int; allowed: a torch.nn.Module"):
        build_model(model("own_towers:no_network"), image_size=4, channels=1, classes=3)


def test_the_working_folder_is_not_searched(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    for first in ("", str(code)):
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        with pytest.raises(ic.UserError, match=r"no module 'own_towers' .*in the working folder, where"):
            own_code.digest("own_towers:tower")
    assert "own_towers" not in sys.modules
    ic.add_code(".")
    assert callable(own_code.load("own_towers:tower"))


def test_a_module_of_the_working_folder_that_is_imported_already_is_not_taken(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "here"
    other.mkdir()
    (other / "own_towers.py").write_text("def tower():\n    return 'wrong'\n")
    monkeypatch.chdir(other)
    monkeypatch.syspath_prepend(str(other))
    __import__("own_towers")
    ic.add_code(code)
    assert "floors" in own_code.load("own_towers:tower").__annotations__


def test_a_named_folder_replaces_no_installed_module(code: Path) -> None:
    (code / "yaml.py").write_text("raise SystemExit('imported')\n")
    ic.add_code(code)
    with pytest.raises(ic.UserError, match=r"the module 'yaml' is installed, and you have not named it"):
        own_code.load("yaml:safe_load")
    ic.add_code("yaml")
    assert callable(own_code.load("yaml:safe_load"))


def test_what_a_space_names_of_installed_packages_is_not_called(code: Path) -> None:
    """A space, a study or a weights file may be a stranger's: this one would have a pickle run."""
    (code / "x.pickle").write_bytes(pickle.dumps(_Harmful(str(code / "ran"))))
    arguments = {"filename": str(code / "x.pickle")}
    ic.add_code(code)
    for section in ("data", "model"):
        space = {"data": "digits", "model": "lenet5", section: {"custom": {"function": "joblib:load", **arguments}}}
        with pytest.raises(ic.UserError, match=r"the module 'joblib' is installed, and you have not named it"):
            read_space_of(space)
    with pytest.raises(ic.UserError):
        describe(Component(path="data.custom", name="custom", args={"function": "joblib:load", **arguments}))
    with pytest.raises(ic.BuildError):
        build_model(model("joblib:load", **arguments), image_size=4, channels=1, classes=3)
    with pytest.raises(ic.UserError):
        custom_metrics.load("joblib:load")
    assert not (code / "ran").exists()


class _Harmful:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_a_module_is_allowed_by_its_folder_or_its_name(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(code))
    monkeypatch.setattr(sys, "path", [*sys.path, str(code)])
    assert callable(own_code.load("own_towers:tower"))
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(ic.UserError, match=r"you have not named it"):
        own_code.load("own_towers:tower")
    monkeypatch.setenv(own_code.VARIABLE, "own_towers")
    assert callable(own_code.load("own_towers:tower"))
    for name in ("own_nothing", "os", "own-towers"):
        monkeypatch.setenv(own_code.VARIABLE, name)
        with pytest.raises(ic.UserError, match=f"{name}: no such folder; allowed: a folder of Python modules, or the"):
            own_code.load("own_towers:tower")
        with pytest.raises(ic.UserError, match=r"no such folder"):
            ic.add_code(name)


def test_pythonpath_and_installations_for_editing_stay(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    monkeypatch.setattr(sys, "path", [str(code), *sys.path])
    assert str(code) not in own_code.module_path()
    monkeypatch.setenv("PYTHONPATH", str(code))
    assert str(code) in own_code.module_path()
    monkeypatch.delenv("PYTHONPATH")
    # As a .pth file has it.
    monkeypatch.setattr(sys, "path", [*sys.path[1:], str(code)])
    assert str(code) in own_code.module_path()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("own_towers:towr", "the module 'own_towers' has no 'towr'"),
        ("own_towers:A_NUMBER", "is a int; allowed: a function"),
        ("own_nothing:f", "no module 'own_nothing'"),
        ("os:system", "is Python's own"),
        ("__main__:f", "what a notebook or a script defines"),
        ("own_towers", "'own_towers': is not allowed"),
        ("../own_towers:f", "is not allowed"),
        ("own_broken:f", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("own_script:f", "cannot be imported (SystemExit: usage: own_script)"),
    ],
)
def test_what_cannot_be_a_function_is_refused_in_one_line(code: Path, function: str, said: str) -> None:
    (code / "own_broken.py").write_text("1 / 0\n")
    (code / "own_script.py").write_text("raise SystemExit('usage: own_script')\n")
    ic.add_code(code)
    space = {"data": "digits", "model": {"custom": {"function": function}}}
    for call in (lambda: own_code.load(function), lambda: read_space_of(space)):
        with pytest.raises(ic.UserError) as caught:
            call()
        assert said in str(caught.value)
        assert len(caught.value.lines()) == 1


def test_arguments_are_those_of_the_function(code: Path) -> None:
    ic.add_code(code)

    def space(**arguments: object) -> dict[str, object]:
        return {"data": "digits", "model": {"custom": {"function": "own_towers:tower", **arguments}}}

    assert [each.path for each in read_space_of(space(floors={"int": [1, 3]})).parameters()] == ["model.custom.floors"]
    for wrong in ({"flors": 1}, {"flors": 1, "floors": {"int": [1, 2]}}):
        with pytest.raises(ic.UserError, match=r"model.custom.flors: unknown key; allowed: floors \(did you mean"):
            read_space_of(space(**wrong))
    with pytest.raises(ic.UserError, match=r"does not say which arguments it takes"):
        read_space_of({"data": "digits", "model": {"custom": {"function": "own_towers:chain"}}})
    with pytest.raises(ic.UserError, match=r"function: an Arg is of a type that a space has no words for"):
        read_space_of({"data": "digits", "model": {"custom": {"function": "own_towers:of_a_set"}}})
    read_space_of({"data": "digits", "model": {"custom": {"function": "own_towers:of_any"}}})
    with pytest.raises(ic.UserError, match=r"takes no channels"):
        read_space_of({"data": "digits", "model": {"custom": {"function": "own_towers:two"}}})


def test_a_change_of_the_source_is_seen(code: Path) -> None:
    ic.add_code(code)
    before = own_code.digest("own_towers:distance")
    assert own_code.load("own_towers:distance").__module__ == "own_towers"
    (code / "own_towers.py").write_text("def distance(probabilities, labels):\n    return 12345.0\n")
    os.utime(code / "own_towers.py", (1, 1))
    assert own_code.digest("own_towers:distance") != before
    assert own_code.load("own_towers:distance")(None, None) == 12345.0
    (code / "own_towers.py").write_text("def further(probabilities, labels):\n    return 1.0\n")
    os.utime(code / "own_towers.py", (2, 2))
    with pytest.raises(ic.UserError, match=r"has no 'distance'"):
        own_code.load("own_towers:distance")


def test_the_digest_of_a_package_is_of_all_its_files(code: Path) -> None:
    package = code / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from own_package.parts import part\n\n\ndef net():\n    return part\n")
    (package / "parts.py").write_text("part = 1\n")
    ic.add_code(code)
    before = own_code.digest("own_package.nets:net")
    assert own_code.load("own_package.nets:net")() == 1
    (package / "parts.py").write_text("part = 2\n")
    os.utime(package / "parts.py", (1, 1))
    changed = own_code.digest("own_package.nets:net")
    assert changed != before
    assert own_code.load("own_package.nets:net")() == 2
    # The same files in another place are another package.
    (package / "below").mkdir()
    (package / "parts.py").rename(package / "below" / "parts.py")
    assert own_code.digest("own_package.nets:net") != changed


def test_a_metric_of_ones_own_is_measured(code: Path) -> None:
    import numpy as np

    ic.add_code(code)
    chances = np.eye(3)
    assert custom_metrics.measure("own_towers:distance", chances, np.array([0, 1, 0])) == pytest.approx(2 / 3)
    space = read_space_of(
        {
            "data": "digits",
            "model": {"lenet5": {}},
            "study": {"objectives": {"own_towers:distance": "minimize"}},
            "limits": {"own_towers:distance": {"at_most": 3}},
        }
    )
    assert space.objectives == (("own_towers:distance", "minimize"),)
    # A measure of a class is none of a module.
    with pytest.raises(ic.UserError, match="recal:3"):
        read_space_of({"data": "digits", "model": "lenet5", "study": {"objectives": {"recal:3": "maximize"}}})


def test_images_of_ones_own_source(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    ic.add_code(code)
    source = describe(Component(path="data.custom", name="custom", args={"function": "own_towers:images"}))
    assert source.classes == ("a", "b")
    assert sum(len(names) for names in source.names.values()) == 40
    same = describe(Component(path="data.custom", name="custom", args={"function": "own_towers:images", "count": 40}))
    other = describe(Component(path="data.custom", name="custom", args={"function": "own_towers:images", "count": 42}))
    assert source.fingerprint == same.fingerprint != other.fingerprint
    for number in range(20):
        # The name of no user, though it begins as one.
        Image.new("RGB", (6, 6), (number, 0, 0)).save(code / f"~{number}.png")
    (code / "own_files.py").write_text(
        "from pathlib import Path\n\n\ndef files():\n"
        "    paths = sorted(path.name for path in Path(__file__).parent.glob('*.png'))\n"
        "    return {'images': paths, 'labels': [n % 2 for n in range(20)], 'splits': ['test'] * 6 + [''] * 14}\n"
    )
    monkeypatch.chdir(code)
    source = describe(Component(path="data.custom", name="custom", args={"function": "own_files:files"}))
    assert (len(source.names["test"]), source.classes) == (6, ("0", "1"))
    with source.read("test", 0) as image:
        assert image.size == (6, 6)
    (code / "own_numbers.py").write_text(
        "import numpy as np\nimport torch\n\n\ndef numbers(kind):\n"
        "    labels = {'torch': torch.arange(20) % 2, 'numpy': np.arange(20, dtype=np.float32) % 2 / 10}[kind]\n"
        "    return {'images': np.zeros((20, 6, 6), dtype=np.uint8), 'labels': labels}\n"
    )
    for kind, classes in (("torch", ("0", "1")), ("numpy", ("0.0", "0.1"))):
        args = {"function": "own_numbers:numbers", "kind": kind}
        assert describe(Component(path="data.custom", name="custom", args=args)).classes == classes


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("3", "gave int"),
        ("{'images': []}", "gave a dictionary of images"),
        ("{'images': [], 'labels': []}", "0 images"),
        ("{'images': ['a.png'], 'labels': []}", "1 images, 0 labels"),
        ("{'images': ['a.png'], 'labels': 3}", "labels are a int; allowed: a list"),
        ("{'images': ['a.png'], 'labels': 'a'}", "labels are a str; allowed: a list"),
        ("{'images': ['a.png'], 'labels': [1], 'splits': None}", "splits are a NoneType; allowed: a list"),
        ("{'images': ['a.png'] * 2, 'labels': [1, 2]}", "a path is there twice"),
        ("{'images': ['a.png', './a.png'], 'labels': [1, 2]}", "a path is there twice"),
        ("{'images': ['a.png'], 'labels': [1], 'splits': ['dev']}", "the split 'dev' is not allowed"),
        ("{'images': ['a.png'], 'labels': [1], 'splits': ['test']}", "no image is of the split train"),
        ("1 / 0", "failed (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_source_that_gives_something_else_is_refused(code: Path, returned: str, said: str) -> None:
    (code / "own_source.py").write_text(f"def images():\n    return {returned}\n")
    ic.add_code(code)
    with pytest.raises(ic.DataError) as caught:
        describe(Component(path="data.custom", name="custom", args={"function": "own_source:images"}))
    assert said in str(caught.value)
    assert str(caught.value).startswith("data.custom: own_source:images: ")

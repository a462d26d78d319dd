"""Networks of timm as teachers: found before any trial, kept by the study, refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared
from imgcls_search.errors import BuildError, CheckpointError, UserError
from imgcls_search.executors.helper import Helper, image_cache, teacher_cache
from imgcls_search.orchestrator import teachers
from imgcls_search.space import Space, parse
from imgcls_search.study.files import StudyFiles
from imgcls_search.training import checkpoint
from imgcls_search.worker import networks, pipeline, start_weights

from tests.conftest import Answer, is_one_line

library = pytest.importorskip("timm", reason="timm is an extra")

NAME = "test_resnet"


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    asked = Helper(tmp_path_factory.mktemp("studies"))
    yield asked
    asked.close()


def space_of(text: str, image: str = "size: 32, channels: 3") -> Space:
    return parse(
        f"data: {{digits: {{max_train: 50}}}}\nimage: {{{image}}}\nmodel: {{lenet5: {{}}}}\n"
        f"training: {{epochs: 1, batch_size: 25}}\n{text}",
        catalog(),
        source="t.yaml",
    )


def data_of(space: Space, helper: Helper) -> Prepared:
    return pipeline.prepare_data(space.first(), image_cache(helper.root))


def written(path: Path, classes: int = 10, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    model = library.create_model(arguments.pop("name", NAME), num_classes=classes, **arguments)
    torch.save(model.state_dict(), path)
    return model.eval()


def distilling(path: Path, name: str = NAME) -> str:
    return f"distill: {{timm: {{name: {name}, weights: {path}, alpha: 1, temperature: 1}}}}"


def test_a_network_of_timm_teaches_by_its_answers_and_is_kept(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pth", StudyFiles(tmp_path, "s")
    own = written(path)
    space = space_of(f"distill: {{none: {{}}, timm: {{name: {NAME}, weights: {path}, alpha: {{float: [0.1, 0.9]}}}}}}")
    data = data_of(space, helper)
    known = teachers.settle(space, files, data, helper, {})
    assert known == {
        f"timm:{NAME}:{path}": {"timm": NAME, "weights": str(path), "sha256": next(iter(known.values()))["sha256"]}
    }
    config = space_of(distilling(path)).first()
    kept = teachers.path_of(config, files, known)
    assert kept is not None
    assert Path(kept).is_relative_to(files.folder)
    model, _, taught = networks.load_weights(checkpoint.load(Path(kept)), kept)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels), own(pixels))
    assert (taught.mean, taught.std) == (own.pretrained_cfg["mean"], own.pretrained_cfg["std"])
    # A training learns from it: to a student that says the same nothing is left to learn.
    seen = start_weights.with_normalisation(config, data)
    session = pipeline.new_session(config, seen, seed=0, device="cpu", teacher=kept)
    assert session.teach is not None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (seen.mean, seen.std))
    own_mean, own_std = (torch.tensor(own.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        told = own((pixels - own_mean) / own_std)
    assert abs(float(session.teach(torch.tensor(0.0), told, (pixels - mean) / std))) < 1e-6
    # The study's own copy is enough, and it may not become another teacher in the middle of a study.
    path.unlink()
    assert teachers.settle(space, files, data, helper, known) == known
    Path(kept).unlink()
    with pytest.raises(CheckpointError, match=r"distill\.timm\.weights: .*no such file"):
        teachers.settle(space, files, data, helper, known)
    written(path, seed=1)
    with pytest.raises(CheckpointError, match="other weights than this study began with"):
        teachers.settle(space, files, data, helper, known)


def test_equal_weights_are_one_file_whatever_the_size_of_images(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pth", StudyFiles(tmp_path, "s")
    written(path)
    space = space_of(distilling(path), "size: {choice: [32, 48]}, channels: 3")
    assert len(teachers.settle(space, files, data_of(space, helper), helper, {})) == 1
    assert teachers.settle_one(space.first(), helper.root, None, None, data_of(space, helper), helper) is not None
    assert all(Path(each).suffix == ".pt" for each in teacher_cache(helper.root).iterdir())
    fixed = tmp_path / "vit.pth"
    written(fixed, name="test_vit", img_size=32)
    space = space_of(distilling(fixed, "test_vit"), "size: {choice: [32, 48]}, channels: 3")
    with pytest.raises(BuildError, match=r"distill\.timm\.name: test_vit: this teacher needs one size .* one image"):
        teachers.settle(space, files, data_of(space, helper), helper, {})


def test_grey_images_are_one_channel_of_a_colour_network(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pth", StudyFiles(tmp_path, "s")
    own = written(path)
    space = space_of(distilling(path), "size: 32, channels: 1")
    known = teachers.settle(space, files, data_of(space, helper), helper, {})
    kept = teachers.path_of(space.first(), files, known)
    model, _, taught = networks.load_weights(checkpoint.load(Path(str(kept))), str(kept))
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.eval()(grey), own(grey.expand(-1, 3, -1, -1)), atol=1e-4)
    assert np.allclose(taught.mean, np.mean(own.pretrained_cfg["mean"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timm: {name: test_resnett, weights: FILE}", r"distill\.timm\.name: timm has no model 'test_resnett'"),
        ("timm: {name: test_resnet, weights: nowhere.pth}", r"distill\.timm\.weights: 'nowhere.pth': no such file"),
        ("timm: {name: test_resnet, weights: OTHER}", "this teacher has other classes: it knows 3, the images have 10"),
        ("timm: {name: test_resnet}", "imagenet: this teacher has other classes: it knows 1,000, the images have 10"),
        ("timm: {name: test_resnet, weights: HEADLESS}", "has no last layer fc; a teacher needs one"),
        ("timm: {name: test_vit, weights: FILE}", r"distill\.timm\.weights: .* does not fit: it lacks"),
        ("timm: {name: test_resnet, weights: DAMAGED}", r"distill\.timm\.weights: .*not a weights file, or damaged"),
    ],
)
def test_a_network_of_timm_that_cannot_teach_is_refused_in_one_line(
    text: str, said: str, tmp_path: Path, helper: Helper
) -> None:
    written(tmp_path / "FILE")
    written(tmp_path / "OTHER", classes=3)
    written(tmp_path / "HEADLESS", classes=0)
    (tmp_path / "DAMAGED").write_bytes(b"nothing")
    for name in ("FILE", "OTHER", "HEADLESS", "DAMAGED"):
        text = text.replace(name, str(tmp_path / name))
    space, files = space_of(f"distill: {{{text}}}"), StudyFiles(tmp_path, "s")
    for settle in (
        lambda: teachers.settle(space, files, data_of(space, helper), helper, {}),
        lambda: teachers.settle_one(space.first(), helper.root, None, None, data_of(space, helper), helper),
    ):
        with pytest.raises(UserError, match=said) as caught:
            settle()
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith("distill.timm")


def imitating(teacher: str, size: int = 32) -> str:
    return f"pretrain: {{imitate: {{size: {size}, epochs: 1, batch_size: 8, teacher: {{{teacher}}}}}}}"


def test_an_imitated_network_of_timm_may_know_any_classes_and_need_no_head(tmp_path: Path, helper: Helper) -> None:
    files = StudyFiles(tmp_path, "s")
    for classes in (0, 3, 1000):
        own = written(tmp_path / f"{classes}.pth", classes=classes)
        space = space_of(imitating(f"timm: {{name: {NAME}, weights: {tmp_path / f'{classes}.pth'}}}", 48))
        data = data_of(space, helper)
        known = teachers.settle(space, files, data, helper, {})
        config = space.first()
        assert teachers.path_of(config, files, known) is None
        kept = teachers.path_of(config.pretraining(), files, known)
        assert kept is not None
        model, _, taught = networks.load_weights(checkpoint.load(Path(kept)), kept)
        assert (taught.image_size, taught.channels) == (48, 3)
        assert (taught.mean, taught.std) == (own.pretrained_cfg["mean"], own.pretrained_cfg["std"])
        pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        features: Any = model.eval()
        with torch.no_grad():
            assert torch.equal(features.forward_features(pixels), own.forward_features(pixels))
            assert not features(pixels).any(), "its head is zeros"
        # One configuration by itself finds the same.
        one = teachers.settle_one(config.pretraining(), helper.root, None, None, data, helper)
        assert one is not None
        assert one[1] == known[next(iter(known))]


@pytest.mark.parametrize(
    ("teacher", "size", "said"),
    [
        ("timm: {name: test_resnett}", 32, r"pretrain\.imitate\.teacher\.timm\.name: timm has no model"),
        ("timm: {name: test_resnet, weights: no.pth}", 32, r"teacher\.timm\.weights: 'no.pth': no such file"),
        ("file: {path: nowhere.pt}", 32, r"pretrain\.imitate\.teacher\.file\.path: nowhere.pt: no such weights file"),
        ("study: {name: nobody}", 32, r"pretrain\.imitate\.teacher\.study\.name: .*no such study"),
        ("file: {path: OWN}", 96, r"takes 8x8 .* it would see 96x96 .*; allowed: pretrain\.imitate\.size: 8"),
        ("file: {path: FOREIGN}", 8, "not a trained model of this program"),
    ],
)
def test_a_teacher_to_imitate_that_cannot_be_used_is_refused_in_one_line(
    teacher: str, size: int, said: str, tmp_path: Path, helper: Helper
) -> None:
    own_file(tmp_path / "OWN", helper)
    torch.save({"model": {}}, tmp_path / "FOREIGN")
    for name in ("OWN", "FOREIGN"):
        teacher = teacher.replace(name, str(tmp_path / name))
    space, files = space_of(imitating(teacher, size), "size: 8, channels: 1"), StudyFiles(tmp_path, "s")
    data = data_of(space, helper)
    for settle in (
        lambda: teachers.settle(space, files, data, helper, {}),
        lambda: teachers.settle_one(space.first().pretraining(), helper.root, None, None, data, helper),
    ):
        with pytest.raises(UserError, match=said) as caught:
            settle()
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith("pretrain.imitate.teacher")


def test_an_imitated_file_of_this_program_may_know_other_classes(tmp_path: Path, helper: Helper) -> None:
    own_file(tmp_path / "own.pt", helper, classes='"classes": ["zero", ')
    files = StudyFiles(tmp_path, "s")
    image = "size: 8, channels: 1"
    space = space_of(imitating(f"file: {{path: {tmp_path / 'own.pt'}}}", 8), image)
    known = teachers.settle(space, files, data_of(space, helper), helper, {})
    assert teachers.path_of(space.first().pretraining(), files, known) is not None
    distilled = space_of(f"distill: {{file: {{path: {tmp_path / 'own.pt'}}}}}", image)
    with pytest.raises(BuildError, match="this teacher has other classes"):
        teachers.settle(distilled, files, data_of(distilled, helper), helper, {})


def own_file(path: Path, helper: Helper, classes: str = '"classes": ["0", ') -> None:
    space = space_of("", "size: 8, channels: 1")
    config, data = space.first(), data_of(space, helper)
    session = pipeline.new_session(config, data, seed=0, device="cpu")
    state = {"model": session.model.state_dict(), **networks.describe_weights(config, data)}
    state["about"] = state["about"].replace('"classes": ["0", ', classes)
    checkpoint.save(state, path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("distill={file: {path: gone.pt}}", "distill.file.path: gone.pt: no such weights file"),
        ("distill={study: {name: gone}}", "distill.study.name: studies/gone.db: no such study"),
        (
            "pretrain={imitate: {teacher: {file: {path: gone.pt}}}}",
            "pretrain.imitate.teacher.file.path: gone.pt: no such weights file",
        ),
    ],
)
def test_check_misses_a_teacher(section: str, said: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here("check", str(tiny), "--samples", "0", "--set", section)
    assert is_one_line(answer)
    assert said in answer.err


def test_a_refused_run_leaves_no_folder_and_a_kept_teacher_may_be_gone(
    tiny: Path, tmp_path: Path, here: Callable[..., Answer], helper: Helper
) -> None:
    teacher, studies = tmp_path / "own.pt", tmp_path / "studies"
    given = [str(tiny), "--set", "image={size: 8}", "--set", f"distill={{file: {{path: {teacher}}}}}"]
    own_file(teacher, helper, classes='"classes": ["zero", ')
    refused = here("run", *given, "--studies", str(studies))
    assert is_one_line(refused)
    assert "this teacher has other classes" in refused.err
    assert not (studies / "tiny").exists()
    own_file(teacher, helper)
    assert here("run", *given, "--set", "study.trials=1", "--studies", str(studies)).code == 0
    teacher.unlink()
    assert here("check", *given, "--samples", "0", "--studies", str(studies)).code == 0
    assert is_one_line(here("check", *given, "--samples", "0", "--studies", str(tmp_path / "others")))

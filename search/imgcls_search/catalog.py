"""Everything that a space file may contain, collected from the builders' signatures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from imgcls_search import own_code, signature
from imgcls_search.compress.sections import DISTILL, PRUNE, QUANTIZE
from imgcls_search.config import PRETRAINING, Component
from imgcls_search.data import DATASETS, POLICIES, augment, has_several_labels, mixing
from imgcls_search.data.image import ImageShape
from imgcls_search.data.unlabeled import UNLABELED
from imgcls_search.errors import BuildError, UserError
from imgcls_search.measures import OF_CLASS, OF_FEATURES, has_meaning, of_features
from imgcls_search.models import families
from imgcls_search.models.heads import HEADS, LOGISTIC, OWN
from imgcls_search.signature import Catalog, Fields, Leaf, OneOf
from imgcls_search.space import Space
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.study.settings import Limits, StudySettings
from imgcls_search.trackers.settings import SETTINGS
from imgcls_search.training import custom_metrics
from imgcls_search.training.losses import LOSSES, SEVERAL
from imgcls_search.training.metrics import METRICS
from imgcls_search.training.optimizers import OPTIMIZERS, SCHEDULES
from imgcls_search.training.pretraining import pretrain_section
from imgcls_search.training.recipe import Finetune, Predict, Training, check_devices
from imgcls_search.training.resolution import RESOLUTIONS
from imgcls_search.trial import MEASURED, SIZES


def catalog() -> Catalog:
    """Return the catalog of this package: its families, data sets, optimizers and so on."""
    policy = OneOf(options=signature.options(POLICIES), default="none", doc="a policy of random operations per image")
    resolution = OneOf(
        options=signature.options(RESOLUTIONS), default="full", doc="the size of the training images in each epoch"
    )
    settings = signature.read(StudySettings)
    scores = {**METRICS, **custom_metrics.sentences()}
    return Catalog(
        config=Fields(
            fields={
                "data": OneOf(options=signature.options(DATASETS), default="digits", fixed=True, doc="the images"),
                "image": signature.read(ImageShape),
                "augment": _with(signature.read(augment), **signature.read(mixing).fields, policy=policy),
                "model": OneOf(options=signature.options(families()), doc="the family of networks"),
                "head": OneOf(
                    options=signature.options(HEADS), default=OWN, doc="the classifier on the features of the network"
                ),
                "optimizer": OneOf(options=signature.options(OPTIMIZERS), default="adamw", doc="the optimizer"),
                "schedule": OneOf(
                    options=signature.options(SCHEDULES), default="cosine", doc="the learning rate over the epochs"
                ),
                "loss": OneOf(options=signature.options(LOSSES), default="cross_entropy", doc="the loss"),
                "training": _with(signature.read(Training), resolution=resolution),
                "predict": signature.read(Predict),
                "finetune": signature.read(Finetune),
                "unlabeled": OneOf(
                    options=signature.options(UNLABELED),
                    default="train",
                    fixed=True,
                    doc="the images of the pretraining, whose labels are not used",
                ),
                "pretrain": pretrain_section(),
                "distill": OneOf(
                    options=signature.options(DISTILL), default="none", doc="a trained network to learn from"
                ),
                "prune": OneOf(options=signature.options(PRUNE), default="none", doc="what is removed after training"),
                "quantize": OneOf(
                    options=signature.options(QUANTIZE), default="none", doc="the arithmetic of the exported network"
                ),
            }
        ),
        study=_with(settings, **strategy(), log=_trackers()),
        limits=signature.read(Limits),
        metrics={**scores, **OF_FEATURES, **SIZES, **MEASURED},
        scores=scores,
        class_scores={
            **OF_CLASS,
            "MODULE:FUNCTION": (own_code.PATTERN, "a function of your own in a module"),
        },
        of_data=_of_data,
    )


def _of_data(known: Catalog, name: str, arguments: Mapping[str, Any]) -> Catalog:
    """Return the catalog with the loss and the objective that suit the labels of a data set."""
    if not has_several_labels(Component(path=f"data.{name}", name=name, args=arguments)):
        return known
    loss = known.config.fields["loss"]
    assert isinstance(loss, OneOf)
    fields = {**known.config.fields, "loss": dataclasses.replace(loss, default=SEVERAL[0])}
    # Mean average precision needs no threshold, and gives rare labels the same weight.
    return dataclasses.replace(
        known, config=dataclasses.replace(known.config, fields=fields), default_metric="average_precision"
    )


def refuse_other_labels(space: Space) -> None:
    """Refuse losses and measures that have no meaning for the labels of a space's data: one class, or several labels.

    Raises:
        UserError: it names the loss or the measure, and what is allowed.
    """
    several = has_several_labels(space.first().component("data"))
    kind = "an image that may have several labels" if several else "an image of one class"
    if several and space.document.get("predict", {}).get("costs") is not None:
        raise UserError(f"{space.locate('predict.costs')}: predict.costs: not for {kind}; leave it out")
    if several and "balanced" in str(space.document["training"].get("draw")):
        raise UserError(
            f"{space.locate('training.draw')}: training.draw: balanced is not for {kind}; allowed: shuffled"
        )
    for name in space.document["loss"]:
        if (name in SEVERAL) != several:
            allowed = ", ".join(loss for loss in LOSSES if (loss in SEVERAL) == several)
            raise UserError(f"{space.locate(f'loss.{name}')}: loss.{name}: not for {kind}; allowed: {allowed}")
    for name in space.named_metrics:
        if not has_meaning(name, several=several):
            path = f"study.objectives.{name}" if name in dict(space.objectives) else f"limits.{name}"
            known = ", ".join([*(key for key in METRICS if has_meaning(key, several=several)), *OF_CLASS])
            raise UserError(f"{space.locate(path)}: {path}: not for {kind}; allowed: {known}")


def strategy() -> dict[str, OneOf]:
    """Return the settings of the strategy in a study section, with the defaults."""
    return {
        "sampler": OneOf(options=signature.options(SAMPLERS), default="auto", fixed=True, doc="draws configurations"),
        "pruner": OneOf(options=signature.options(PRUNERS), default="asha", fixed=True, doc="stops or pauses trials"),
    }


def _trackers() -> Fields:
    """Return the settings of the trackers in a study section; each is off unless the space says where to write."""
    return Fields(
        fields={name: signature.read(settings) for name, settings in SETTINGS.items()},
        doc="trackers that the trials are shown in besides",
    )


def refuse_idle_sections(space: Space) -> None:
    """Refuse sections without effect, such as `finetune` if no model starts from pretrained weights.

    Raises:
        UserError: it names the section to remove.
    """
    if space.is_config:
        # It may be a trial without pretrained weights, exported from a space whose other trials have some.
        return
    given = space.document["finetune"]
    pretrains = space.document["pretrain"] != {"none": {}}
    if space.document["unlabeled"] != {"train": {}} and not pretrains:
        raise UserError(
            f"{space.locate('unlabeled')}: unlabeled: nothing here pretrains; give pretrain: simclr or imitate, or "
            "leave the section out"
        )
    if pretrains:
        return
    if given != dataclasses.asdict(Finetune()) and not space.gives("weights"):
        raise UserError(
            f"{space.locate('finetune')}: finetune: no model here starts from pretrained weights; "
            "give one, such as weights: imagenet, or leave the section out"
        )
    if LOGISTIC in space.document["head"] and not space.gives("weights"):
        raise UserError(
            f"{space.locate('head')}: head.{LOGISTIC}: is fitted to features of pretrained weights, and no model here "
            "starts from any; give one, such as weights: imagenet, or another head"
        )


def refuse_contradictions(space: Space) -> None:
    """Refuse a space whose settings contradict each other in every trial, or would change nothing.

    Raises:
        UserError: it names the settings, and what is allowed.
    """
    refuse_two_starts(space)
    refuse_two_averages(space)
    refuse_idle_sections(space)
    refuse_of_pretraining(space)
    refuse_other_labels(space)


def refuse_two_averages(space: Space) -> None:
    """Refuse a space in which every trial has two averages of its weights, or one over more epochs than it trains.

    Raises:
        UserError: it names the two settings.
    """
    section = space.document["training"]
    if any(isinstance(section[name], Mapping) for name in ("ema", "swa", "epochs")):
        # In a search, only the trials that have both are refused.
        return
    problem = Training(**{name: section[name] for name in ("ema", "swa", "epochs")}).problem_of_average()
    if problem is not None:
        raise UserError(f"{space.locate('training.swa')}: training.swa: {problem}")


def refuse_two_starts(space: Space) -> None:
    """Refuse a space in which every network starts from weights and is pretrained as well.

    Raises:
        UserError: it names the two settings.
    """
    models, starts = space.document["model"], space.document["pretrain"]
    given = [name for name, args in models.items() if isinstance(args.get("weights"), str)]
    if "none" not in starts and len(given) == len(models):
        path = f"model.{given[0]}.weights"
        raise UserError(
            f"{space.locate(path)}: {path}: a network that starts from weights is not pretrained as well "
            f"(pretrain.{next(iter(starts))}); leave one of them out"
        )


def refuse_of_pretraining(space: Space) -> None:
    """Refuse settings that do not belong to a search over the pretraining.

    Raises:
        UserError: it names the setting, and what is allowed.
    """
    objective = of_features(space.objectives)
    if objective is None:
        return
    what = f"a search over the pretraining ({objective})"
    allowed = (*OF_FEATURES, *SIZES)
    for metric in space.named_metrics:
        if metric not in allowed:
            raise UserError(f"{space.locate('study')}: {metric}: not in {what}; allowed: {', '.join(allowed)}")
    starts = space.document["pretrain"]
    if "none" in starts:
        raise UserError(f"{space.locate('pretrain')}: pretrain: none: not in {what}; allowed: simclr, imitate")
    epochs = {name: args["epochs"] for name, args in starts.items()}
    if len(set(epochs.values())) > 1:
        said = ", ".join(f"pretrain.{name}.epochs: {count}" for name, count in epochs.items())
        raise UserError(f"{space.locate('pretrain')}: {said}: all trials of {what} need the same number")
    if space.document["data"][next(iter(space.document["data"]))].get("folds"):
        raise UserError(f"{space.locate('data')}: data: folds: not in {what}; features are measured on one split")
    for each in space.parameters():
        if each.path.partition(".")[0] not in PRETRAINING:
            raise UserError(
                f"{space.locate(each.path)}: {each.path}: is searched ({each.domain}), but is no part of {what}; give "
                "one value"
            )


def refuse_with_folds(space: Space) -> None:
    """Refuse folds with networks that are pruned or quantized after training, or a teacher that has seen the folds.

    Raises:
        UserError: it names the section to remove.
    """
    folds = space.first().folds
    if folds == 1:
        return
    why = {
        "distill": "a teacher has seen the images that folds are scored on",
        "prune": "scores of pruned copies are not cross-validated",
        "quantize": "scores of quantized copies are not cross-validated",
    }
    for section, reason in why.items():
        if space.document.get(section, {"none": {}}) != {"none": {}}:
            raise UserError(
                f"{space.locate(section)}: {section}: not in a search with folds: {folds}; {reason}; leave one of them "
                "out, or add it when you train the exported configuration"
            )
    imitated = (space.document.get("pretrain") or {}).get("imitate") or {}
    for kind in imitated.get("teacher") or {}:
        if kind in ("file", "study"):
            path = f"pretrain.imitate.teacher.{kind}"
            raise UserError(
                f"{space.locate(path)}: {path}: not in a search with folds: {folds}; such a teacher may have seen the "
                "images that folds are scored on; allowed: timm"
            )


def refuse_with_devices(space: Space) -> None:
    """Refuse settings that several devices cannot share, if the space leaves no other choice.

    Raises:
        UserError: it names the setting, and what is allowed.
    """
    if "training" not in space.first().tree:
        return
    recipe = Training(**space.first().section("training"))
    if any(each.path == "training.batch_size" for each in space.parameters()):
        # Draws whose batch is too small are refused one by one.
        recipe = dataclasses.replace(recipe, batch_size=10**9)
    try:
        check_devices(recipe)
    except BuildError as error:
        raise UserError(f"{space.locate(error.path)}: {error.path}: {error.message}") from error


def _with(fields: Fields, **more: Leaf | OneOf | Fields) -> Fields:
    return Fields(fields={**fields.fields, **more}, doc=fields.doc)

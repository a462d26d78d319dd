"""Plan which epochs of a training read stored features, and refuse impossible plans. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imgcls_search.compress import sections
from imgcls_search.config import TrialConfig
from imgcls_search.data import POLICIES, augment
from imgcls_search.errors import BuildError
from imgcls_search.models import heads
from imgcls_search.training.recipe import Finetune


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """How a configuration uses stored features."""

    epochs: int
    """The first epochs of a training, with batches of features."""

    views: int | None
    """Augmented versions of each training image; None: the original images."""

    is_fitted_first: bool
    """Whether a logistic regression initialises the head."""

    is_fit_only: bool

    class_weights: str | Mapping[str, float] = "none"
    """Class weights of the regression, as in the loss of other heads."""

    draws_evenly: bool = False
    """Whether each class has the same total weight, as in epochs with balanced draws."""

    def view_in(self, epoch: int) -> int | None:
        """Return the number of the view that an epoch reads."""
        return None if self.views is None else epoch % self.views


def plan(config: TrialConfig) -> HeadPlan | None:
    """Return how a configuration uses features, None if it does not."""
    if not is_pretrained(config):
        return None
    recipe = _finetune(config)
    epochs = _epochs(config, recipe)
    fits = config.is_fitted or recipe.start == "logistic"
    if not epochs and not fits:
        return None
    return HeadPlan(
        epochs=epochs,
        views=recipe.views,
        is_fitted_first=fits,
        is_fit_only=config.is_fitted,
        class_weights=config.class_weights,
        draws_evenly=config.draws_evenly,
    )


def _epochs(config: TrialConfig, recipe: Finetune) -> int:
    if config.is_fitted:
        return 1
    if recipe.freeze != "backbone":
        return 0
    shown = changes_of_batches(config)
    # Features of random batches cannot be stored; with a teacher, pixels are needed.
    if shown.mixes or (shown.augments and recipe.views is None) or sections.distillation(config) is not None:
        return 0
    return min(recipe.freeze_epochs or config.training_epochs, config.training_epochs)


def check(config: TrialConfig) -> None:
    """Refuse a head that cannot be fitted, and views that cannot be stored as features.

    Raises:
        BuildError: the setting, and what is allowed.
    """
    head, has_weights = heads.head_of(config), is_pretrained(config)
    if config.is_fitted:
        if not has_weights:
            raise BuildError(
                head.path, "is fitted to features of pretrained weights, and this model has none; allowed: linear, mlp"
            )
        if sections.distillation(config) is not None:
            raise BuildError(head.path, "is fitted to labels and learns from no teacher; allowed: linear, mlp")
    if not has_weights:
        return
    recipe = _finetune(config)
    if recipe.start == "logistic" and head.name == "mlp":
        raise BuildError("finetune.start", "logistic gives weights to one linear layer, not to an mlp; allowed: random")
    if recipe.views is not None and (recipe.freeze == "backbone" or config.is_fitted):
        if changes_of_batches(config).mixes:
            raise BuildError("finetune.views", "mixup and cutmix mix pixels, and views keep features; allowed: null")
        if sections.distillation(config) is not None:
            raise BuildError("finetune.views", "a teacher looks at pixels, and views keep features; allowed: null")


def _finetune(config: TrialConfig) -> Finetune:
    return Finetune(**config.section("finetune"))


def is_pretrained(config: TrialConfig) -> bool:
    """Tell whether a configuration starts from pretrained weights, or pretrains its own."""
    return config.component("model").args.get("weights") is not None or config.needs_backbone


@dataclass(frozen=True, kw_only=True)
class BatchChanges:
    """Random changes to a batch, apart from its order."""

    augments: bool
    """Whether its images are augmented."""

    mixes: bool
    """Whether images are mixed with each other."""


def changes_of_batches(config: TrialConfig) -> BatchChanges:
    """Return how a configuration changes a batch."""
    section = config.section("augment")
    is_plain = config.component("augment.policy").name == "none"
    del section["policy"]
    mixes = any([section.pop("mixup", 0.0), section.pop("cutmix", 0.0)])
    policy = POLICIES["none"]()
    augments = not is_plain or augment(policy=policy, **section) != augment(policy=policy)
    return BatchChanges(augments=augments, mixes=mixes)

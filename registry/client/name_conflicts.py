"""Names that make one slug: models of such names must not be there together."""

from __future__ import annotations

from registry.client.held_models import HeldModels, ModelNames
from registry.client.publishing import CardPublisher
from registry.core.records import Owner
from registry.core.slugs import slugify
from registry.core.text import shown
from registry.errors import Invalid


class NameConflicts:
    """Compares the names of a model with those that this worker holds, or anybody published."""

    def __init__(self, models: HeldModels, publisher: CardPublisher) -> None:
        self._models = models
        self._publisher = publisher

    def check(self, owner: Owner, names: ModelNames) -> None:
        """Raise Invalid if one of the names makes the slug of another one that is there."""
        for model in self._models.all():
            if model.names is not None and model.names.base != names.base:
                _check_slugs(names.base, model.names.base)
        if names.lora is not None:
            self.check_lora(owner, names.lora)
        else:
            found = self._publisher.find_name(owner)
            if found is not None and found != names.base:
                _check_slugs(names.base, found)

    def check_lora(self, owner: Owner, name: str) -> None:
        """Raise Invalid if another LoRA than the one of this name is there under its slug."""
        model = self._models.find(owner)
        if model is not None and model.names is not None:
            found = model.names.lora
        else:
            # Of a process before this one, or beside it.
            found = self._publisher.find_name(owner)
        if found is not None and found != name:
            _check_slugs(name, found)


def _check_slugs(name: str, other: str) -> None:
    slug = slugify(name)
    try:
        is_same = slug == slugify(other)
    except Invalid:
        # What others published may be named anyhow.
        return
    if is_same:
        raise Invalid(
            f"{shown(name)} and {shown(other)}, which is there, both make the slug {slug}, so that "
            "one would be taken for the other. Give the exact name, or rename one of them."
        )

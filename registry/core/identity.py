"""An owner as the columns of the tables spell it."""

from __future__ import annotations

from typing import NamedTuple

from registry.core.checks import check_owner_names, parse_instance_id


class Identity(NamedTuple):
    """An owner's columns: `instance_id` as text, '' for no LoRA."""

    namespace: str
    component: str
    endpoint: str
    instance_id: str
    lora_slug: str

    @classmethod
    def checked(
        cls,
        namespace: str,
        component: str,
        endpoint: str,
        instance_id: int | str,
        lora_slug: str | None,
    ) -> Identity:
        """The columns of an `Owner`, without making one.

        Raises:
            Invalid: a field is not well-formed.
        """
        check_owner_names(namespace, component, endpoint, lora_slug)
        number = str(parse_instance_id(instance_id))
        return cls(namespace, component, endpoint, number, lora_slug or "")

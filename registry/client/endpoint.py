"""An endpoint of a fleet, which all of its instances have in common."""

from __future__ import annotations

from dataclasses import dataclass

from registry.core.records import Owner
from registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, whatever its instances.

    Raises:
        Invalid: a name is not well-formed.
    """

    namespace: str
    component: str
    name: str

    def __post_init__(self) -> None:
        self.owner(0)

    @classmethod
    def of(cls, value: Endpoint | str) -> Endpoint:
        """An endpoint, or the one that its text names.

        Raises:
            Invalid: the text is not that of an endpoint.
            TypeError: it is neither.
        """
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, Endpoint):
            raise TypeError(
                "An endpoint is an Endpoint, or the text namespace/component/endpoint, not "
                f"{type(value).__name__}."
            )
        return value

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint that `namespace/component/endpoint` names.

        Raises:
            Invalid: the text has not three parts, or a part is not well-formed.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise Invalid(f"An endpoint is namespace/component/endpoint, not {text!r}.")
        return cls(*parts)

    def owner(self, instance_id: int, lora_slug: str | None = None) -> Owner:
        """The owner that an instance of this endpoint is."""
        return Owner(self.namespace, self.component, self.name, instance_id, lora_slug)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.name}"

"""The recipe's section `caption`: who writes the words, and the settings of whoever that is, side by side.

    caption: {captioner: alt-text, min_characters: 5}

Which settings there can be is the captioner's own to say (`Captioner.Config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator

from nextflow_data.captioners.captioner import captioners
from nextflow_data.common.part_errors import mistake, nested
from nextflow_data.common.section import Section, operational

DEFAULT = "alt-text"


class CaptionConfig(Section):
    """Words for images: by whom, and how."""

    model_config = ConfigDict(extra="allow")

    captioner: str = DEFAULT
    """"alt-text" takes the page's own words; models are captioners of other packages."""
    batch_images: int = operational(64, ge=1)
    """Images handed to a captioner at once, of however many documents."""

    @model_validator(mode="before")
    @classmethod
    def _settings(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        own = {key: given for key, given in value.items() if key in cls.model_fields}
        name = own.get("captioner", DEFAULT)
        if not isinstance(name, str):
            return own
        try:
            settings = captioners.get(name).Config.model_validate({key: value[key] for key in value if key not in own})
        except ValidationError as error:
            raise ValidationError.from_exception_data(cls.__name__, list(nested((), error))) from None
        except ValueError as error:
            raise ValidationError.from_exception_data(cls.__name__, [mistake(("captioner",), str(error), name)]) from None
        return own | {key: getattr(settings, key) for key in type(settings).model_fields}

    @property
    def settings(self) -> Section:
        """The captioner's own."""
        return captioners.get(self.captioner).Config.model_validate(self.__pydantic_extra__ or {})

    def identity(self) -> dict[str, Any]:
        """Who writes, in which version, and what of the settings is not as recorded."""
        found = captioners.get(self.captioner)
        return {"captioner": [found.name, found.version, self.settings.identity()]}

    @classmethod
    def parts(cls) -> dict[str, type[Section] | None]:
        """`Section.parts`, with the settings of every captioner that is installed."""
        classes = [captioners.get(name).Config for name in captioners.names()]
        return {**super().parts(), **{key: part for one in classes for key, part in one.parts().items()}}

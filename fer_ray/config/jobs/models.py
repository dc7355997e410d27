"""What the list of models can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig


@config("The models")
class ModelsConfig(StoresConfig):
    """What `fer-ray models` can be told."""

    models: PathText = option(
        default="", help="folder, s3://, gs:// or az:// address below which the bundles lie (required)", metavar="DIR"
    )
    alias: tuple[str, ...] = option(
        default=(), help="have a name stand for one of them: champion=NAME, then --model DIR/@champion", metavar="ALIAS=NAME"
    )
    remove_alias: tuple[str, ...] = option(default=(), help="forget names that were given", metavar="ALIAS")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.models), "Which models? Give --models FOLDER.")
        wrong = next((pair for pair in self.alias if "=" not in pair), None)
        check(wrong is None, f"The setting alias takes ALIAS=NAME, such as champion=first, not {wrong!r}.")

    def aliases(self) -> dict[str, str]:
        """The names to give, and what each stands for."""
        return dict(pair.split("=", 1) for pair in self.alias)


@config("The bundle")
class UpgradeConfig(StoresConfig):
    """What `fer-ray upgrade` can be told."""

    model: PathText = option(default="", help="the bundle, in a folder or at s3://bucket/prefix (required)", metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.model), "Which bundle? Give --model DIR.")

"""The parameters of the estimators: a recipe, a run directory, and fields of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator, ClassifierMixin

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.errors import InputError


class Parameters(ClassifierMixin, BaseEstimator):
    """Base class of the estimators. Its arguments are described in `NoisyStudent`."""

    def __init__(
        self,
        recipe: str | Config = "folder",
        *,
        out: str | Path | None = None,
        verbose: bool = False,
        **overrides: Any,
    ) -> None:
        self.recipe = recipe
        self.out = out
        self.verbose = verbose
        self._overrides = overrides

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor, with the fields of the configuration that were given."""
        # A recipe may be a Config, which has no parameters of its own: `deep` has no effect.
        return {**super().get_params(deep=False), **self._overrides}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor, also fields of the configuration, and return the estimator.

        An unknown field is an error of `fit`.
        """
        for name, value in params.items():
            if name in self._get_param_names():
                setattr(self, name, value)
            else:
                self._overrides = {**self._overrides, name: value}
        return self

    def _config(self) -> Config:
        """The configuration: the recipe with the fields that were given.

        Raises:
            InputError: a field is unknown, or has a wrong value.
        """
        overrides = [(name.replace("__", "."), value) for name, value in self._overrides.items()]
        if isinstance(self.recipe, Config):
            if overrides:
                raise InputError(
                    f"{overrides[0][0]} is given together with a Config; set it with dataclasses.replace"
                )
            return self.recipe
        return recipes.load(self.recipe, overrides)

"""A name of the classifier that documents and scripts use; it lives in `predict.classifier`."""

from bilevel_apps.predict.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]

"""Few-shot learning as a bilevel problem: episodes, learners and their evaluation."""

from bilevel_meta.classifier import Classifier, Fitted
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Episodes
from bilevel_meta.evaluation import Score, evaluate
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_meta.registry import LEARNERS, register_learner

__all__ = [
    "LEARNERS",
    "Classifier",
    "Diet",
    "Episodes",
    "Fitted",
    "HeadLearner",
    "HyperRepresentation",
    "Learner",
    "Score",
    "evaluate",
    "register_learner",
]

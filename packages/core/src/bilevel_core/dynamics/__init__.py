"""Inner optimisers, one per file."""

from bilevel_core.dynamics.adam import Adam
from bilevel_core.dynamics.custom import Custom
from bilevel_core.dynamics.first_order import FirstOrder
from bilevel_core.dynamics.gradient_descent import GradientDescent
from bilevel_core.dynamics.heavy_ball import HeavyBall
from bilevel_core.dynamics.nesterov import Nesterov
from bilevel_core.dynamics.projected_gradient import ProjectedGradient
from bilevel_core.dynamics.transformation import Transformation

__all__ = [
    "Adam",
    "Custom",
    "FirstOrder",
    "GradientDescent",
    "HeavyBall",
    "Nesterov",
    "ProjectedGradient",
    "Transformation",
]

# %% [markdown]
# # A method of your own
#
# A few-shot method that stands on features needs one function: from the features and labels of
# the support images to a classifier of features. Everything else is inherited: each image passes
# the network once, the loss is ordinary autograd, and evaluation, `fit` and `save` are there.

# %% [markdown]
# ## The method
#
# This one compares a query with the mean of each class by the cosine of their angle, divided by a
# temperature. Its parameters are λ: the network, and the temperature.

# %%
import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta import HeadLearner
from bilevel_models import heads


class CosineMeans(HeadLearner):
    """Logits cos(h, c_k) / τ, with c_k the mean direction of class k; τ is learned."""

    def __init__(self, backbone: nn.Module, **encoding) -> None:
        super().__init__(backbone, **encoding)
        self.log_temperature = nn.Parameter(torch.tensor(0.1).log())

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        one_hot = heads.one_hot(labels, way, features)  # (episodes, n, way)
        means = one_hot.mT @ functional.normalize(features, dim=-1)  # (episodes, way, dim)
        weight = functional.normalize(means, dim=-1).mT / self.log_temperature.exp()
        return {"weight": weight, "bias": torch.zeros_like(weight[:, :1])}


# %% [markdown]
# A head is a dict with a weight (episodes, dim, way) and a bias (episodes, 1, way), or any object
# with `logits(features)`. With `unit_length=True` features have length one, so the product is the
# cosine.

# %% [markdown]
# ## Try it

# %%
from bilevel_data import load_source, open_store, write_store
from bilevel_meta import evaluate
from bilevel_models import create_model

write_store("glyphs.h5", load_source("glyphs"))
store = open_store("glyphs.h5")
train = store.episodes("train", way=5, shot=1, query=5, seed=0)
test = store.episodes("test", way=5, shot=1, query=5, seed=1)

torch.manual_seed(0)
network = create_model("omniglot-net", channels=1, image_size=28, filters=16)
learner = CosineMeans(network, norm="ghost", unit_length=True)
print("before", evaluate(learner, test, episodes=100))

optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
for batch in train.batches(4, steps=40):
    optimizer.zero_grad()
    learner.loss(batch).backward()
    optimizer.step()
print("after", evaluate(learner, test, episodes=100))
print(f"temperature 0.100 -> {learner.log_temperature.exp():.3f}")

# %% [markdown]
# ## Other kinds of method
#
# | your method | derive from | implement |
# | --- | --- | --- |
# | a classifier of features | `HeadLearner` | `fit_head` |
# | the inner loop changes the network | `Learner` | `adapt`, with `bilevel_core.solve_inner` |
# | a training signal of its own | either | `loss`, or `losses` for several outer steps per meta-batch |
#
# [Add a method](../how-to/add-a-method.md) says how it joins the package.

# %% [markdown]
# # A method of your own
#
# Forty lines: a method whose parameters λ are learned across episodes, trained and scored on the
# built-in glyphs. Any method is a `Learner`. One whose heads stand on features is a `HeadLearner`,
# which encodes each image once; all that it needs is `fit_head`.

# %% [markdown]
# ## The method
#
# Prototypical networks with a metric: λ is the backbone and one weight per feature, and a query
# goes to the class mean that is nearest in the weighted distance. `fit_head` gets the support
# images' features of all episodes at once, `(episodes, n, dim)`, and returns one head per episode:
# a linear one as here, or any object with `logits(features)`.

# %%
import torch
from torch import Tensor, nn

from bilevel_meta import HeadLearner
from bilevel_models import heads


class WeightedPrototypes(HeadLearner):
    """Logits -Σ_j a_j (h_j(x) - c_kj)², a = exp of what is learned."""

    def __init__(self, backbone: nn.Module | str, **encoding) -> None:
        super().__init__(backbone, **encoding)
        self.log_weight = nn.Parameter(torch.zeros(self.dim))

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        members = heads.one_hot(labels, way, features).mT
        means = members @ features / members.sum(-1, keepdim=True)
        weighted = means * self.log_weight.exp()
        # Up to what all classes share, the distance is linear in the query's features.
        return {"weight": 2 * weighted.mT, "bias": -(weighted * means).sum(-1)[:, None]}


# %% [markdown]
# ## Data
#
# Any store will do; the glyphs are characters of many scripts, drawn from fonts that are installed.
# Test episodes are of scripts that training does not see.

# %%
from bilevel_data import load_source, open_store, write_store

write_store("glyphs.h5", load_source("glyphs"))
store = open_store("glyphs.h5")
train = store.episodes("train", way=20, shot=1, query=5, seed=0)
test = store.episodes("test", way=5, shot=1, query=15, seed=0)

# %% [markdown]
# ## Training
#
# The loss is an ordinary scalar: its gradient reaches the backbone and the weights through the
# heads. Any optimiser, scheduler or wrapper of PyTorch goes with it.

# %%
from bilevel_meta import evaluate

torch.manual_seed(0)
learner = WeightedPrototypes("omniglot-net", image_shape=store.image_shape, norm="ghost")
optimizer = torch.optim.Adam(learner.parameters(), lr=2e-3)
print("untrained", evaluate(learner, test, episodes=50))
for batch in train.batches(2, steps=25):
    optimizer.zero_grad()
    learner.loss(batch).backward()
    optimizer.step()
print("trained  ", evaluate(learner, test, episodes=50))

# %% [markdown]
# A method with another training signal overrides `loss`; one that moves the whole network
# implements `adapt`, most easily by `bilevel_meta.adaptation`. The methods that come with the
# package are examples of both: see [the methods](../methods/index.md).

# %% [markdown]
# # MAML and prototypical networks side by side
#
# Few-shot methods are learners with one contract: their parameters are λ, `loss(batch)` is what a
# meta-batch costs, and `adapt` turns support images into a classifier. So they train in one loop
# and are compared on the same episodes.

# %% [markdown]
# ## Data
#
# Characters of many scripts, drawn from the fonts that matplotlib installs; the test is of
# scripts that the training never meets.

# %%
import torch

from bilevel_data import load_source, open_store, write_store

write_store("glyphs.h5", load_source("glyphs"))
store = open_store("glyphs.h5")
train = store.episodes("train", way=5, shot=1, query=5, seed=0)
test = store.episodes("test", way=5, shot=1, query=5, seed=1)

# %% [markdown]
# ## Two learners
#
# *Prototypical networks* (Snell et al., 2017): a query goes to the class whose support features
# have the nearest mean. λ is the network.
#
# *MAML* (Finn et al., 2017): all weights move, by a few steps of gradient descent on the support
# images. λ is where they start.

# %%
from bilevel_meta.methods.maml import Maml
from bilevel_meta.methods.prototypical import Prototypical
from bilevel_models import create_model


def network():
    torch.manual_seed(0)
    return create_model("omniglot-net", channels=1, image_size=28, filters=8)


learners = {
    "prototypical networks": Prototypical(network(), norm="episode"),
    "MAML": Maml(network(), way=None, norm="episode", steps=3, step_size=0.1),
}

# %% [markdown]
# Both use the statistics of the episode, so both are transductive here: [whose
# statistics?](../explain/statistics.md) MAML knows no other way than an episode's own.

# %% [markdown]
# ## One loop

# %%
import time

from bilevel_meta import evaluate

for name, learner in learners.items():
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    start = time.perf_counter()
    for batch in train.batches(4, steps=30):
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
    each = 1000 * (time.perf_counter() - start) / 30
    print(f"{name}: {evaluate(learner, test, episodes=100)}, {each:.0f} ms per hyper-iteration")

# %% [markdown]
# Thirty hyper-iterations are the very beginning of a training, so this compares how the two start
# and what they cost, not how good they get; the [results](../results.md) have trainings at
# length.
#
# ## Use either

# %%
images = store.load("test").images
support, labels = images[[0, 20, 40]], ["first", "second", "third"]  # three new characters
for name, learner in learners.items():
    print(name, learner.fit(support, labels).predict(images[[1, 21, 41]]))

# %% [markdown]
# With `way=None` MAML's last layer starts at zero, so that it takes any number of classes. [The other
# methods](../methods/index.md) take the same place in this loop, and so does [one of your
# own](own-method.md).

# %% [markdown]
# # A representation from your own pictures
#
# From a folder of pictures to a network that tells new classes apart from one picture each. Here
# the pictures are drawn first, so that this page runs anywhere; skip that step for pictures of
# yours.

# %% [markdown]
# ## The pictures
#
# Thirty-two signs, each a few strokes, and twelve drawings of each with an unsteady hand. What
# matters is the layout: one directory per class.

# %%
import random
from pathlib import Path

from PIL import Image, ImageDraw

random.seed(0)
for sign in range(32):
    strokes = [
        [(random.randrange(10, 90), random.randrange(10, 90)) for _ in range(3)] for _ in "ab"
    ]
    folder = Path("pictures", f"sign-{sign:02}")
    folder.mkdir(parents=True)
    for number in range(12):
        paper = Image.new("L", (100, 100), "white")
        for stroke in strokes:
            shaky = [(x + random.gauss(0, 5), y + random.gauss(0, 5)) for x, y in stroke]
            ImageDraw.Draw(paper).line(shaky, fill="black", width=6, joint="curve")
        paper.save(folder / f"{number}.png")

# %% [markdown]
# ## The data set
#
# A source reads the folder; a store is one verified file. The classes are dealt out to train, val
# and test, so that the test is of signs that the training never met.

# %%
from bilevel_data import load_source, open_store, write_store

write_store("signs.h5", load_source("folder", "pictures", size=28, channels=1))
store = open_store("signs.h5")
for split in store.splits:
    print(split, len(store.load(split).class_names), "classes")

# %% [markdown]
# ## Training
#
# An episode is a small task: five classes, one support image of each, and query images to
# classify. The learner trains a linear head on the support images with five steps of gradient
# descent. `backward()` goes through those steps to the network.

# %%
import torch

from bilevel_meta import HyperRepresentation, evaluate

torch.manual_seed(0)
train = store.episodes("train", way=5, shot=1, query=5, seed=0)
test = store.episodes("test", way=5, shot=1, query=5, seed=0)
learner = HyperRepresentation("omniglot-net", image_shape=store.image_shape, norm="ghost", steps=5)
print("before training", evaluate(learner, test, episodes=100))

optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
for step, batch in enumerate(train.batches(4, steps=60)):
    optimizer.zero_grad()
    loss = learner.loss(batch)
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:2}: loss {loss.item():.2f}")
print("after training", evaluate(learner, test, episodes=100))

# %% [markdown]
# ## Use it
#
# Give it one picture of each of some new classes, and it names others:

# %%
signs = store.load("test")
chosen = range(4)  # four of the test's signs
first = [signs.offsets[c] for c in chosen]
model = learner.fit(signs.images[first], [signs.class_names[c] for c in chosen])
print(model.predict(signs.images[[i + 1 for i in first]]))
print([signs.class_names[c] for c in chosen], "is right")
learner.save("signs.safetensors")

# %% [markdown]
# ## Next
#
# - The commands do the same with checkpoints, validation and tracking: [train on a folder of
#   pictures](../how-to/own-pictures.md).
# - [MAML and prototypical networks side by side](side-by-side.md), on the same episodes.
# - [Encode once](../explain/encode-once.md): why five inner steps cost no passes of the network.

"""A run on disk: its folder, checkpoint and record, and the model that is made of them."""

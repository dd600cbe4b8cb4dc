"""Any labelled data set of torchvision."""

"""Items that are made of meta-trained runs (sections 5.2 and 5.3)."""

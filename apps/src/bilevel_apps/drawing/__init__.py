"""How the pictures of the commands look."""

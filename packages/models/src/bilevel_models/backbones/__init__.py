"""The networks, a file each, and what they share."""

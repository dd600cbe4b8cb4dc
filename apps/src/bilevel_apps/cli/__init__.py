"""One thin file a command: read the arguments, call the library, print."""

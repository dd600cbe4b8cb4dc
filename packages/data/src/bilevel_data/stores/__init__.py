"""A store on disk: its writer, its reader and its manifest."""

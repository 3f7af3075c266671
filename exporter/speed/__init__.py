"""Times artifacts against eager in interleaved rounds."""

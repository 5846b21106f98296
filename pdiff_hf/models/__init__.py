"""Parameter autoencoders and denoisers, each module self-contained."""

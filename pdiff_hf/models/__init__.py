"""Parameter autoencoders and denoisers: each module is complete in itself."""

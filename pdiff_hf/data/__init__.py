"""What networks are fed with: images, and other labeled data."""

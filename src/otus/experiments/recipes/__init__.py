"""Scripts that trained the packaged weights and measured the figures of the documentation, with command and cost."""

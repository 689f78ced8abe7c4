"""Mode `autograd`: gradients that never come, and graphs that grow."""

"""Mode `memory`: which lines hold the tensors at the peak, and what grows."""

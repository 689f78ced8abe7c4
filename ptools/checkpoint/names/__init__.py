"""What the entries of a state_dict are called, and should be."""

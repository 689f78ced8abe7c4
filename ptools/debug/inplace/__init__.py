"""Mode `inplace`: where a tensor was saved for backward, and where it was changed."""

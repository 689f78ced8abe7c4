"""Mode `nan`: the operation that made the first NaN."""

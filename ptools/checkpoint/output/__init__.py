"""Writing the result: formats, places, and never losing what was there."""

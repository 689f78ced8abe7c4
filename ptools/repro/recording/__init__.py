"""What a run is compared by: how it is recorded while it runs."""

"""What a program takes in from outside torch, and which of it made two runs part."""

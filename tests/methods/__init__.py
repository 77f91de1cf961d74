"""Every method changes what it claims to change, on a model small enough for seconds."""

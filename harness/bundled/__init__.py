"""Small evaluation sets written for this project, laid out as on the Hugging Face hub."""

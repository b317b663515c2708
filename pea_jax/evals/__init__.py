"""What images are worth, in numbers (`scores`) and for the eye (`grid`). Images in, no networks."""

"""Images scored in numbers (`scores`) and laid out for the eye (`grid`); no networks."""

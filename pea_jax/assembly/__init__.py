"""What a config describes, built: models, data and the train step. The tasks share it."""

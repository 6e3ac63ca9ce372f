"""Learning-rate schedules as functions of the step."""

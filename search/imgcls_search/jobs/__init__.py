"""The work of commands other than searching: retrain, confirm, reproduce, evaluate, export and so on."""

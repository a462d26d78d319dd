"""What commands do besides a search: retrain, confirm, reproduce, evaluate, export and so on."""

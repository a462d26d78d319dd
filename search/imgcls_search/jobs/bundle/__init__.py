"""Write a trained model as a bundle: export it, compare it with torch, measure it, describe it."""

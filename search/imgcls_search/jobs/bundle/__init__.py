"""A trained model leaves as a bundle: exported, compared with torch, measured, described."""

"""Convert a trained model to a file for a runtime, and load it again: ONNX export, latency, sizes, bundles."""

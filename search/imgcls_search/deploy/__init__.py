"""From a trained model to a file that a runtime serves, and back: ONNX export, reload, latency, sizes, bundles."""

"""Bundles for other runtimes: files for ONNX Runtime, TensorFlow and LiteRT, and a page that labels in the browser."""

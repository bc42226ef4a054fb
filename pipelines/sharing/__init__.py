"""Runs without patients' data, to be handed on: zip, hub folder, MONAI bundle, ONNX."""

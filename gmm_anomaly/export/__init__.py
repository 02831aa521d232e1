"""Export of trained models to ONNX and torch.export."""

"""Encoders for other programs: folders for timm and transformers, ONNX files, torch.export files."""

"""The operators for token reduction, in torch and as functions of ONNX."""

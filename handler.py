"""What Hugging Face Inference Endpoints start; how requests are answered is in endpoint_wavcse.py."""

from transformers.dynamic_module_utils import get_class_from_dynamic_module


class EndpointHandler:
    def __init__(self, path: str = ""):
        self.handler = get_class_from_dynamic_module("endpoint_wavcse.EndpointHandler", path)(path)

    def __call__(self, data: dict) -> list:
        return self.handler(data)

"""Which device and number format a run uses."""

import torch


def pick_device(name):
    """auto: a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name}: this torch ({torch.__version__}) sees no GPU; use --device cpu, or install a "
                         "CUDA build of torch")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name}: unknown; use auto, cpu, cuda or cuda:1") from None


def pick_precision(name, device):
    """The dtype of convolutions: auto is bfloat16 on GPUs that compute in it, else float16; float32 on CPUs."""
    if name == "fp32" or device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

"""Import this module before anything that imports torchvision (diffusers' models, clean-fid, timm).

PyPI's torchvision is linked with CUDA. With a CPU build of torch its operators do not load, and `import torchvision`
fails where it registers them by `torch.library.register_fake`. This module imports torchvision and skips the
registration of operators that did not load. A complete torchvision is unaffected; a missing one is not required.
"""

from collections.abc import Callable
from typing import Any

import torch

_register_fake = torch.library.register_fake


def _register_fake_if_loaded(op: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    namespace, _, name = str(op).partition("::")
    if namespace == "torchvision" and not hasattr(torch.ops.torchvision, name):
        return lambda description: description
    return _register_fake(op, *args, **kwargs)


torch.library.register_fake = _register_fake_if_loaded
try:
    import torchvision  # noqa: F401
except ModuleNotFoundError:
    pass
finally:
    torch.library.register_fake = _register_fake

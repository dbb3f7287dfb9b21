"""Loading models; the only place that may open a checkpoint.

Weights are data: safetensors, or a state dict read with `weights_only=True`. Everything that could run code
while it is opened (pickles, whole modules, joblib files, TorchScript and pt2 archives) is refused. A factory
is code, but code that the user names on purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..extras import need
from ..inputs import InputSpec
from .factories import cause, load_factory

__all__ = [
    "check_fit",
    "claimed_privacy",
    "load_factory",
    "load_onnx",
    "load_weights",
    "read_provenance",
    "read_safetensors",
]

_RECIPE = "where you trust it, run: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
_REFUSED = {".ckpt", ".h5", ".joblib", ".keras", ".npy", ".npz", ".pickle", ".pkl", ".pt2", ".ts"}
_STATE_DICTS = {".bin", ".pt", ".pth"}
# The first release without a known way to run code through weights_only=True.
_SAFE_TORCH = (2, 10)
_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module, all of it or nothing.

    Args:
        module: Receives the weights.
        path: A .safetensors file, or a .pt, .pth or .bin file that holds a plain state dict.

    Raises:
        InputError: if the file is of another kind, damaged, or does not fit the module.
    """
    if path.is_dir():
        raise InputError(f"weights {path} is a folder, not a file")
    if not path.is_file():
        raise InputError(f"weights {path} does not exist")
    suffix = path.suffix.lower()
    if suffix in _REFUSED:
        raise InputError(
            f"weights {path} is refused: {suffix} files can run code when they are opened; {_RECIPE}"
        )
    if suffix == ".safetensors":
        state = read_safetensors(path)
    elif suffix in _STATE_DICTS:
        state = _read_state_dict(path)
    else:
        known = ", ".join([".safetensors", *sorted(_STATE_DICTS)])
        raise InputError(f"weights {path} has the suffix {suffix!r}; accepted: {known}")
    check_fit(module, state, path)
    try:
        # Not strict: a tied weight is stored once, and everything else has just been checked.
        module.load_state_dict(state, strict=False)
    except Exception as error:  # a module may refuse its state in ways of its own
        raise InputError(f"weights {path} do not fit: {cause(error)}") from None


def read_safetensors(path: Path) -> Mapping[str, Any]:
    """The tensors of a file by name.

    Raises:
        InputError: if it is of another kind or damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # SafetensorError for a bad header, others for bad shapes and unreadable files
        with path.open("rb") as file:
            disguised = file.read(2) in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"}
        hint = (
            f"; it is a pickle or a torch archive: {_RECIPE}" if disguised else "; it is damaged or cut short"
        )
        raise InputError(f"weights {path} is not a safetensors file: {cause(error)}{hint}") from None


def read_provenance(path: Path) -> Mapping[str, Any]:
    """What `Hardened.save` wrote about how the weights came about: a claim; empty where there is none.

    Raises:
        InputError: if the file cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            told = (file.metadata() or {}).get("robustml", "{}")
        found = json.loads(told)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"weights {path} have a header that cannot be read: {cause(error)}") from None
    return found if isinstance(found, Mapping) else {}


def claimed_privacy(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a provenance says of differential privacy for the samples; None where it says nothing.

    Of a federation that is what the client has spent that spent most: what it was asked for is no claim.
    """
    claim, spent = provenance.get("privacy"), provenance.get("spent")
    if isinstance(spent, dict):
        most = spent.get("samples")
        if not isinstance(most, dict):
            return None
        known = {name: most.get(name) for name in ("epsilon", "delta")}
        whose = "add or remove one sample of one client"
        return {**known, "accountant": "of each client", "neighbors": whose, "randomness": "of each client"}
    return claim if isinstance(claim, dict) else None


def _read_state_dict(path: Path) -> Mapping[str, Any]:
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE_TORCH:
        needed = ".".join(map(str, _SAFE_TORCH))
        raise InputError(f"weights {path}: reading it safely needs torch {needed} or later; {_RECIPE}")
    if zipfile.is_zipfile(path) and (kind := _foreign_archive(path)):
        raise InputError(f"weights {path} is refused: it is a {kind}, which can run code; {_RECIPE}")
    try:
        with warnings.catch_warnings():
            # Of pickle protocols that it does not fully know; what it makes of them is checked below.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's refusal, or whatever a damaged file makes the reader raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
            what = f" ({found[1]})" if found else ""
            raise InputError(
                f"weights {path} is refused: it pickles Python objects{what}, not a state dict; {_RECIPE}"
            ) from None
        raise InputError(f"weights {path} cannot be read: {cause(error)}") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(key, str) for key in state):
        raise InputError(f"weights {path} holds a {type(state).__name__}, not a state dict; {_RECIPE}")
    if not any(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(list(state)[:5])
        raise InputError(
            f"weights {path} holds a checkpoint with {keys}; save only the model's state dict: {_RECIPE}"
        )
    return state


def _foreign_archive(path: Path) -> str | None:
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] or name for name in archive.namelist()}
        if "constants.pkl" in names:
            return "TorchScript archive"
        if "archive_format" in names or any(name.startswith("models/") for name in names):
            return "pt2 archive"
    return None


def check_fit(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Compare the names and shapes of a state dict with a module's.

    Raises:
        InputError: listing what is missing, unexpected or of another shape.
    """
    own = module.state_dict(keep_vars=True)
    stored = {_storage(own[key]) for key in state if key in own}
    missing = [key for key in own if key not in state and (_storage(own[key]) or key) not in stored]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(own[key].shape)}"
        for key in state
        if key in own
        and _has_shape(own[key])
        and _has_shape(state[key])
        and state[key].shape != own[key].shape
    ]
    if not missing and not unexpected and not shapes:
        return
    problems = [
        f"{len(found)} {what}: {', '.join(found[:3])}{', ...' if found[3:] else ''}"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    hint = ""
    for prefix in ("module.", "_orig_mod.", "model."):
        if unexpected and {key.removeprefix(prefix) for key in unexpected} >= set(missing) > set():
            hint = f"; the keys start with {prefix!r}: save the state dict of the model inside the wrapper"
            break
    raise InputError(f"weights {path} do not fit the model: {'; '.join(problems)}{hint}")


def _storage(value: Any) -> int:
    """Where a tensor's values lie, 0 if nowhere; tied weights share it."""
    return value.data_ptr() if _has_shape(value) else 0


def _has_shape(value: Any) -> bool:
    # Lazy modules hold parameters whose shape is open until their first input.
    return isinstance(value, Tensor) and not nn.parameter.is_lazy(value)


def load_onnx(path: Path, inputs: InputSpec) -> tuple[Any, str]:
    """Open an ONNX model on the CPU.

    Args:
        path: The .onnx file, with its weights inside.
        inputs: What the model must take.

    Returns:
        The ONNX Runtime session, and the SHA-256 of the file.

    Raises:
        InputError: if ONNX Runtime is not installed, refuses the file, or the model takes inputs of another
            shape; `BlackBox.from_onnx` checks the rest.
    """
    runtime = need("onnxruntime", extra="onnx", why=f"the model {path.name}")
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"onnx {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # What is run must be what the digest names: the bytes just read, and no weights from files beside them,
    # which are looked for in a folder that cannot exist.
    options.add_session_config_entry(_EXTERNAL_DATA, f"{path}/none")
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has a type of its own for each of its error codes
        reason = cause(error)
        hint = "; save it with its weights inside: onnx.save(onnx.load(path), path)"
        external = "external data" in reason.lower()
        raise InputError(f"onnx {path} is refused: {reason}{hint if external else ''}") from None
    _check_shape(session, inputs, path)
    return session, hashlib.sha256(content).hexdigest()


def _check_shape(session: Any, inputs: InputSpec, path: Path) -> None:
    for given in session.get_inputs()[:1]:
        shape = tuple(given.shape or ())[1:]
        wanted = zip(shape, inputs.shape, strict=False)
        if len(shape) != len(inputs.shape) or any(isinstance(a, int) and a != b for a, b in wanted):
            raise InputError(f"onnx {path} takes inputs of shape {shape}; inputs.shape is {inputs.shape}")

"""`robustml doctor`: would a stress test of this target mean anything? No attack is run."""

from __future__ import annotations

import click

from .options import device_option, emit, json_option, stdout_for_results, write_json

__all__ = ["doctor"]


@click.command()
@click.argument("target", default=".")
@device_option
@json_option
def doctor(target: str, device: str, json: bool) -> None:
    """Load TARGET, look at a few samples, and say what was found; the first problem ends with code 2."""
    from ..stress.admission import admit, check_mode
    from ..targets import load_target
    from ..wrapping import pick_device
    from .planning import checked_plan

    place = pick_device(device)
    loaded = load_target(target)
    model, data = loaded.model, loaded.data
    check_mode(model)
    # A target file need not name threats; the rest of what it says about the run is checked even so.
    suite = checked_plan(loaded, place).suite.name if loaded.threats else f"{loaded.suite} (not checked)"
    with stdout_for_results(), model.ready(place):
        found = [
            (
                "model",
                f"{loaded.model_name}, {model.size or 'unknown'} parameters, {model.access.label} access",
            ),
            (
                "data",
                f"{len(data)} samples of shape {model.inputs.shape}, bounds {_bounds(model.inputs.bounds)}",
            ),
            *admit(model, data, place).findings,
            ("threats", ", ".join(threat.name for threat in loaded.threats) or "none named"),
            ("suite", suite),
        ]
    if json:
        write_json(dict(found))
        return
    emit(*(f"ok  {name}: {text}" for name, text in found))


def _bounds(bounds: object) -> str:
    return str(bounds) if len(str(bounds)) < 40 else "per feature"

"""`robustml doctor`: would a stress test of this target mean anything? No attack is run."""

from __future__ import annotations

import click

from .options import device_option, json_option, write_json

__all__ = ["doctor"]


@click.command()
@click.argument("target", default=".")
@device_option
@json_option
def doctor(target: str, device: str, as_json: bool) -> None:
    """Load TARGET, look at a few samples, and say what was found; the first problem ends with code 2."""
    from ..api import pick_device
    from ..stress.admission import admit, check_mode
    from ..targets import load_target

    place = pick_device(device)
    loaded = load_target(target)
    model, data = loaded.model, loaded.data
    check_mode(model)
    with model.ready(place):
        found = [
            (
                "model",
                f"{loaded.model_name}, {model.size or 'unknown'} parameters, {model.access.label} access",
            ),
            (
                "data",
                f"{len(data)} samples of shape {model.inputs.shape}, bounds {_bounds(model.inputs.bounds)}",
            ),
            *admit(model, data, place),
            ("threats", ", ".join(threat.name for threat in loaded.threats) or "none named"),
        ]
    if as_json:
        write_json(dict(found))
        return
    for name, text in found:
        click.echo(f"ok  {name}: {text}")


def _bounds(bounds: object) -> str:
    return str(bounds) if len(str(bounds)) < 40 else "per feature"

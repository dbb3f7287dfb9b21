"""The stress matrix of a federation as a heat map."""

from __future__ import annotations

from typing import Any

from ..report.charts import drawn
from .federation_matrix import FederatedStress

__all__ = ["heat_map"]

_LOSS, _INK = "#0a0b0c", "#010203"  # stand-ins that the page replaces by its own colors
_DEEPEST = 0.85
_WIDTH, _ABOVE = 6.4, 0.05  # inches


def heat_map(stress: FederatedStress, partition: str, name: str = "matrix") -> str:
    """Draw what each attack takes from the accuracy of each aggregator: the darker, the more.

    Args:
        stress: The matrix.
        partition: One of its partitions.
        name: Prefix that keeps the ids of several charts on one page apart; letters and digits.

    Returns:
        An `<svg>` element.

    Raises:
        InputError: for a partition that the matrix does not have.
    """
    attacks, aggregators = stress.names("attack"), stress.names("aggregator")
    hints = {}
    for row, aggregator in enumerate(aggregators):
        for column, attack in enumerate(attacks):
            figure = stress.accuracy(attack, aggregator, partition)
            success = stress.success(attack, aggregator, partition)
            baseline = stress.baseline(attack, aggregator, partition)
            before = "" if baseline is None else f", {baseline.value:.3f} when nobody attacks"
            more = "" if success is None else f", backdoor {success.value:.3f}{before}"
            hints[f"cell-{row}-{column}"] = f"{aggregator}, {attack}: {figure}{more}"

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        # In inches: names need as much room beside two rows as beside nine.
        below = 0.2 + 0.05 * max(map(len, attacks))
        left = 0.2 + 0.075 * max(map(len, aggregators))
        height = below + 0.24 * len(aggregators) + _ABOVE
        axes.figure.set_size_inches(_WIDTH, height)
        axes.figure.subplots_adjust(left / _WIDTH, below / height, 0.99, 1 - _ABOVE / height)
        for row, aggregator in enumerate(aggregators):
            for column, attack in enumerate(attacks):
                value = stress.accuracy(attack, aggregator, partition).value
                lost = max(0.0, stress.lost(attack, aggregator, partition).value)
                cell = Rectangle(
                    (column, row), 1, 1, color=_LOSS, linewidth=0, alpha=_DEEPEST * min(1.0, lost)
                )
                cell.set_gid(f"cell-{row}-{column}")
                axes.add_patch(cell)
                axes.text(column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", color=_INK)
        axes.set_xlim(0, len(attacks))
        axes.set_ylim(len(aggregators), 0)
        # Names are words, whatever is in them.
        literal: dict[str, Any] = {"parse_math": False}
        columns = [column + 0.5 for column in range(len(attacks))]
        axes.set_xticks(columns, attacks, rotation=40, ha="right", **literal)
        axes.set_yticks([row + 0.5 for row in range(len(aggregators))], aggregators, **literal)
        axes.tick_params(length=0)

    return drawn(draw, name, f"Accuracy in percent by aggregator and attack, {partition}", hints)

"""The curves of membership attacks on logarithmic axes, where few false alarms can be told from many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .charts import LOOKS, drawn
from .membership_parts import MembershipAttack

__all__ = ["roc_chart"]

# Names of strangers could be formulas, or nothing that a picture can hold.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")


def roc_chart(attacks: Sequence[MembershipAttack], *, name: str, title: str) -> str:
    """Draw true against false positive rates of every attack.

    Args:
        attacks: At least one.
        name: Prefix that keeps the ids of several charts on one page apart; letters and digits.
        title: What a screen reader says of the picture.

    Returns:
        An `<svg>` element.
    """
    return drawn(lambda axes: _draw(axes, attacks), name, title, {})


def _draw(axes: Any, attacks: Sequence[MembershipAttack]) -> None:
    # Its labels are wider than those of other charts.
    axes.set_position((0.12, 0.15, 0.84, 0.82))
    # Below one over their number no rate but zero can be seen, and zero has no logarithm.
    floor = min(1 / max(attack.non_members, 1) for attack in attacks) / 2
    low = min(1 / max(attack.members, 1) for attack in attacks) / 2
    lowest = min(floor, low)
    for number, attack in enumerate(attacks):
        look = LOOKS[number % len(LOOKS)]
        fpr = [max(rate, lowest) for rate in attack.roc.fpr]
        tpr = [max(rate, lowest) for rate in attack.roc.tpr]
        # Between two corners nothing is found: the curve is a stair.
        label = attack.attack if _NAME.fullmatch(attack.attack) else f"attack {number + 1}"
        axes.plot(fpr, tpr, linewidth=1.4, drawstyle="steps-post", label=label, **look)
    axes.plot([lowest, 1], [lowest, 1], color="#010203", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(floor, 1)
    axes.set_ylim(lowest, 1.1)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#010203", alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, fontsize=8)

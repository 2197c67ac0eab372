"""The policies' updates as their papers print them: plain weights in decimals of 60 digits, no logarithms, no tricks."""

from __future__ import annotations

from decimal import Decimal, localcontext

DIGITS = 60


class NaiveExp3:
    """Weights multiplied by exp(-eta loss / p), then the fixed share; with `gains` figure 4 of Auer et al. 2002 (Exp3.S)."""

    def __init__(self, members: int, eta: float, gamma: float, share: float, gains: bool = False) -> None:
        self.weights = [Decimal(1)] * members
        self.eta, self.gamma, self.share, self.gains = Decimal(eta), Decimal(gamma), Decimal(share), gains

    def probabilities(self) -> list[Decimal]:
        with localcontext(prec=DIGITS):
            total = sum(self.weights)
            return [(1 - self.gamma) * weight / total + self.gamma / len(self.weights) for weight in self.weights]

    def observe(self, member: int, loss: float) -> None:
        with localcontext(prec=DIGITS):
            probability = self.probabilities()[member]
            total, count = sum(self.weights), len(self.weights)
            if self.gains:
                gain = (1 - Decimal(loss)) / probability
                self.weights[member] *= (self.gamma * gain / count).exp()
                self.weights = [weight + Decimal(1).exp() * self.share / count * total for weight in self.weights]
            else:
                self.weights[member] *= (-self.eta * Decimal(loss) / probability).exp()
                self.weights = shared(self.weights, self.share)


class NaiveExp4:
    """Every member's weight times exp(-eta loss); those that answered keep together what they had; then the fixed share."""

    def __init__(self, members: int, eta: float, share: float) -> None:
        self.weights = [Decimal(1)] * members
        self.eta, self.share = Decimal(eta), Decimal(share)

    def shares(self) -> list[Decimal]:
        with localcontext(prec=DIGITS):
            total = sum(self.weights)
            return [weight / total for weight in self.weights]

    def observe(self, losses: dict[int, float]) -> None:
        with localcontext(prec=DIGITS):
            before = sum(self.weights[member] for member in losses)
            for member, loss in losses.items():
                self.weights[member] *= (-self.eta * Decimal(loss)).exp()
            if len(losses) < len(self.weights):
                after = sum(self.weights[member] for member in losses)
                for member in losses:
                    self.weights[member] *= before / after
            self.weights = shared(self.weights, self.share)


def shared(weights: list[Decimal], share: Decimal) -> list[Decimal]:
    """Each gives away `share` of its weight, and gets an equal portion of what all gave."""
    portion = share * sum(weights) / len(weights)
    return [(1 - share) * weight + portion for weight in weights]

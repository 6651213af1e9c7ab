"""Counts of the requests in one rollout step, by arm.

Counts are sums, so those of several gateways add up, and their size does not grow with traffic. In code each sum has a
typed key. Stores and logs write a key as a path: 'arm/number' or 'arm/timing/kind/bucket'.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product, starmap
from typing import Literal, NamedTuple, get_args

from gateway.rollout.policy.histograms import bucket_of, median_s
from gateway.rollout.policy.means import Measure, length_bucket, surprise_bucket

# The side of the comparison a request is on. 'shadow' is the canary with stable's mirrored requests, 'shadow_stable' is
# stable with the canary's. Stores have these words.
Arm = Literal["stable", "canary", "shadow", "shadow_stable"]
# Only requests of one kind are compared. A canary with its own vision half starts with a cold cache, so it encodes
# more images than stable. Without kinds this would look like a slower canary.
Kind = Literal["text", "images at hand", "images encoded"]
Timing = Literal["first_token", "inter_token"]
# Signs of a sick model in an answer. 'same_text' is an answer that another question got shortly before.
Sign = Literal["looped", "cut_off", "wrong_script", "same_text", "filtered"]
# Of mirrored answers. Where only the canary's breaks a rule it is 'worse', where only stable's does 'better'.
Mirrored = Literal["compared", "equal", "worse", "better", "dropped"]
# Answers that do not keep the constraint of their request. It is the release's fault if the other release keeps it.
Constraint = Literal["constraint_failures", "constraint_faults"]
Number = Literal["requests", "errors", "overdue", "empty", "waiting", Mirrored, Sign, Constraint]
Rating = Literal["rated", "disliked"]
_MAX_RATINGS = 100  # of one tenant that count
_COMPARED: tuple[Arm, Arm] = ("stable", "canary")


class Ratings(NamedTuple):
    """Ratings of one release. Both may be scaled down."""

    disliked: float
    others: float


class TenantRatings(NamedTuple):
    """One tenant's ratings of both releases."""

    stable: Ratings
    canary: Ratings


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request ended."""

    kind: Kind
    failed: bool
    empty: bool  # ended well, but without text
    first_token_s: float | None  # None without a first token. For an overdue request, its waiting time so far.
    inter_token_s: float | None  # mean of this answer. None with fewer than two messages of tokens.
    overdue: bool = False  # failed by hanging, and may still be in flight
    signs: tuple[Sign, ...] = ()
    num_tokens: int | None = None  # of a complete answer
    mean_logprob: float | None = None  # of its tokens, where it was asked for


class NumberKey(NamedTuple):
    """The key of one sum."""

    arm: Arm
    number: Number

    @property
    def path(self) -> str:
        """The key as stores and logs write it."""
        return f"{self.arm}/{self.number}"


class HistogramKey(NamedTuple):
    """The key of one histogram."""

    arm: Arm
    timing: Timing
    kind: Kind

    @property
    def path(self) -> str:
        """The key as stores write it, without the bucket."""
        return f"{self.arm}/{self.timing}/{self.kind}"


class RatingKey(NamedTuple):
    """The key of ratings by tenant."""

    arm: Arm
    rating: Rating

    @property
    def path(self) -> str:
        """The key as stores write it, without the tenant's number."""
        return f"{self.arm}/{self.rating}"


class MeasureKey(NamedTuple):
    """The key of one measure of answers, by bucket."""

    arm: Arm
    measure: Measure

    @property
    def path(self) -> str:
        """The key as stores write it, without the bucket."""
        return f"{self.arm}/{self.measure}"


_NUMBERS = {key.path: key for key in starmap(NumberKey, product(get_args(Arm), get_args(Number)))}
_HISTOGRAMS = {key.path: key for key in starmap(HistogramKey, product(get_args(Arm), get_args(Timing), get_args(Kind)))}
_RATINGS = {key.path: key for key in starmap(RatingKey, product(get_args(Arm), get_args(Rating)))}
_MEASURES = {key.path: key for key in starmap(MeasureKey, product(get_args(Arm), get_args(Measure)))}


class Counts:
    """Sums and histograms of the requests of one step."""

    def __init__(self) -> None:
        self._numbers: Counter[NumberKey] = Counter()
        self._histograms: defaultdict[HistogramKey, Counter[int]] = defaultdict(Counter)
        self._ratings: defaultdict[RatingKey, Counter[int]] = defaultdict(Counter)
        self._measures: defaultdict[MeasureKey, Counter[int]] = defaultdict(Counter)

    @classmethod
    def from_paths(cls, paths: Mapping[str, int]) -> "Counts":
        """Return the counts that a store has.

        Paths of a newer version are skipped.
        """
        counts = cls()
        for path, count in paths.items():
            start, _, bucket = path.rpartition("/")
            if path in _NUMBERS:
                counts._numbers[_NUMBERS[path]] += count
            elif start in _HISTOGRAMS and bucket.removeprefix("-").isdecimal():
                counts._histograms[_HISTOGRAMS[start]][int(bucket)] += count
            elif start in _RATINGS and bucket.isdecimal():
                counts._ratings[_RATINGS[start]][int(bucket)] += count
            elif start in _MEASURES and bucket.isdecimal():
                counts._measures[_MEASURES[start]][int(bucket)] += count
        return counts

    def to_paths(self) -> dict[str, int]:
        """Return every count by its path, for a store."""
        buckets = {
            f"{key.path}/{bucket}": count
            for key, histogram in self._histograms.items()
            for bucket, count in histogram.items()
        }
        ratings = {
            f"{key.path}/{tenant}": count for key, tenants in self._ratings.items() for tenant, count in tenants.items()
        }
        measures = {
            f"{key.path}/{bucket}": count for key, found in self._measures.items() for bucket, count in found.items()
        }
        return {key.path: count for key, count in self._numbers.items()} | buckets | ratings | measures

    def totals(self) -> dict[str, int]:
        """Return the sums by path, for a log."""
        return {key.path: count for key, count in sorted(self._numbers.items())}

    def add(self, arm: Arm, number: Number, count: int = 1) -> None:
        """Add to one sum."""
        self._numbers[NumberKey(arm, number)] += count

    def add_time(self, arm: Arm, timing: Timing, kind: Kind, bucket: int, count: int = 1) -> None:
        """Add to one bucket of a histogram. See `bucket_of`."""
        self._histograms[HistogramKey(arm, timing, kind)][bucket] += count

    def add_rating(self, arm: Arm, tenant: int, *, disliked: bool) -> None:
        """Add one rating of an answer.

        Args:
            arm: the release that answered.
            tenant: a number that stands for the tenant.
            disliked: whether the score is below 0.
        """
        self._ratings[RatingKey(arm, "rated")][tenant] += 1
        if disliked:
            self._ratings[RatingKey(arm, "disliked")][tenant] += 1

    def num_ratings(self, arm: Arm, rating: Rating) -> int:
        """Return the ratings of all tenants."""
        return self._ratings[RatingKey(arm, rating)].total()

    def ratings(self) -> list[TenantRatings]:
        """Return the ratings of each tenant.

        A tenant with many ratings of a release counts as one with fewer of the same share.
        """
        stable, canary = (self._ratings[RatingKey(arm, "rated")] for arm in _COMPARED)
        return [
            TenantRatings(self._limited("stable", tenant), self._limited("canary", tenant))
            for tenant in sorted({*stable, *canary})
        ]

    def _limited(self, arm: Arm, tenant: int) -> Ratings:
        """Return one tenant's ratings, of limited weight."""
        rated = self._ratings[RatingKey(arm, "rated")][tenant]
        disliked = self._ratings[RatingKey(arm, "disliked")][tenant]
        factor = min(1.0, _MAX_RATINGS / max(1, rated))
        return Ratings(disliked * factor, (rated - disliked) * factor)

    def add_outcome(self, arm: Arm, outcome: Outcome) -> None:
        """Add one request that ended."""
        self.add(arm, "requests")
        self.add(arm, "errors", int(outcome.failed))
        self.add(arm, "overdue", int(outcome.overdue))
        self.add(arm, "empty", int(outcome.empty))
        for sign in outcome.signs:
            self.add(arm, sign)
        if outcome.first_token_s is not None:
            self.add_time(arm, "first_token", outcome.kind, bucket_of(outcome.first_token_s))
        if outcome.inter_token_s is not None:
            self.add_time(arm, "inter_token", outcome.kind, bucket_of(outcome.inter_token_s))
        if outcome.num_tokens is not None:
            self._measures[MeasureKey(arm, "length")][length_bucket(outcome.num_tokens)] += 1
        if outcome.mean_logprob is not None:
            self._measures[MeasureKey(arm, "surprise")][surprise_bucket(outcome.mean_logprob)] += 1

    def update(self, other: "Counts") -> None:
        """Add all counts of `other`."""
        self._numbers.update(other._numbers)
        for key, histogram in other._histograms.items():
            self._histograms[key].update(histogram)
        for rating, tenants in other._ratings.items():
            self._ratings[rating].update(tenants)
        for measure, buckets in other._measures.items():
            self._measures[measure].update(buckets)

    def number(self, arm: Arm, number: Number) -> int:
        """Return one sum."""
        return self._numbers[NumberKey(arm, number)]

    def measured(self, arm: Arm, measure: Measure) -> Counter[int]:
        """Return an arm's answers by bucket of a measure."""
        return self._measures[MeasureKey(arm, measure)]

    def histograms(self, arm: Arm, timing: Timing) -> dict[Kind, Counter[int]]:
        """Return the histograms of one timing, by kind of request."""
        return {key.kind: found for key, found in self._histograms.items() if (key.arm, key.timing) == (arm, timing)}

    def median_s(self, arm: Arm, timing: Timing) -> float | None:
        """Return the median over all kinds of requests, seconds.

        None without requests.
        """
        return median_s(sum(self.histograms(arm, timing).values(), Counter()))

    def __add__(self, other: "Counts") -> "Counts":
        total = Counts()
        total.update(self)
        total.update(other)
        return total

    def __eq__(self, other: object) -> bool:
        # As with a Counter, an absent count equals 0.
        return isinstance(other, Counts) and Counter(self.to_paths()) == Counter(other.to_paths())

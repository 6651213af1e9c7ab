"""Compare the real and the mirrored answer of one request."""

from collections.abc import Sequence

from gateway.rollout.answer_rules import AnswerRules
from gateway.rollout.policy import Mirrored
from tandem.v1 import gateway_pb2, sampling_pb2


class WatchedAnswer:
    """One answer, kept until its request ends."""

    def __init__(self, request: gateway_pb2.GatewayGenerateRequest, rules: AnswerRules) -> None:
        self._request = request
        self._rules = rules
        self._texts: list[str] = []
        self.has_ended = False
        self.has_failed = False  # its constraint could not be followed
        # Whether it keeps its constraint. None without one, and for an answer that something else cut short.
        self.keeps_constraint: bool | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def add(self, response: gateway_pb2.GatewayGenerateResponse) -> None:
        """Take the next message of the answer."""
        if not response.HasField("finished"):
            self._texts.append(response.delta.text)
            return
        self.has_ended = True
        is_whole = response.finished.finish_reason == sampling_pb2.FINISH_REASON_STOP and not self._request.stop
        if is_whole and self._request.sampling.WhichOneof("constraint"):
            self.keeps_constraint = self._rules.keeps_constraint(self.text, self._request.sampling)

    def fail(self) -> None:
        """End the answer, as its constraint could not be followed."""
        self.has_ended = self.has_failed = True
        self.keeps_constraint = False

    @property
    def breaks_a_rule(self) -> bool:
        """Whether it refuses, or does not keep its constraint."""
        return self.has_failed or self._rules.breaks(self.text, self._request.sampling)


class AnswerPair:
    """Two releases' answers to one request."""

    def __init__(self, request: gateway_pb2.GatewayGenerateRequest, rules: AnswerRules, *, is_greedy: bool) -> None:
        """Begin both answers.

        Args:
            request: of both.
            rules: judge answers that differ.
            is_greedy: whether the answers can be compared. Sampled ones differ by chance.
        """
        self.is_greedy = is_greedy
        self.real = WatchedAnswer(request, rules)
        self.mirrored = WatchedAnswer(request, rules)

    def comparison(self, *, is_canary_real: bool) -> Sequence[Mirrored]:
        """Return the numbers that the pair counts in.

        Args:
            is_canary_real: whether the real answer is the canary's. Else the mirrored one is.
        """
        if self.real.has_failed == self.mirrored.has_failed and self.real.text == self.mirrored.text:
            return ["compared", "equal"]
        stable, canary = (self.mirrored, self.real) if is_canary_real else (self.real, self.mirrored)
        if stable.breaks_a_rule == canary.breaks_a_rule:
            return ["compared"]
        return ["compared", "worse" if canary.breaks_a_rule else "better"]
